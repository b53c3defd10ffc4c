//! Groups that have one member: where every user has a group of their own, files are often group-writable.
//!
//! Owns the answer to "is that user alone in that group?" from passwd(5) and group(5). What these files do not
//! say is answered with no: accounts from other sources never count as alone.

use super::private_file;

/// The most bytes of each of the two files.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Whether the user with this uid is the only member of the group.
pub(super) fn is_alone(uid: u32, gid: u32) -> bool {
    let read = |path: &str| private_file::read_public(path.as_ref(), FILE_BYTES_MAX).ok();
    match (read("/etc/passwd"), read("/etc/group")) {
        (Some(passwd), Some(group)) => {
            let (passwd, group) = (
                String::from_utf8_lossy(&passwd),
                String::from_utf8_lossy(&group),
            );
            only_member(&passwd, &group, uid, gid)
        }
        _ => false,
    }
}

fn only_member(passwd: &str, group: &str, uid: u32, gid: u32) -> bool {
    let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
    let mut users = Vec::new();
    for line in passwd.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let primary = number(fields.get(3).copied()) == Some(gid);
        match number(fields.get(2).copied()) == Some(uid) {
            true => users.extend(fields.first().copied()),
            // Somebody else has it as the primary group.
            false if primary => return false,
            false => {}
        }
    }
    let mut groups = group.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let members = *fields.get(3)?;
        (number(fields.get(2).copied()) == Some(gid)).then_some(members)
    });
    let known = |members: &str| {
        let mut names = members.split(',').filter(|name| !name.is_empty());
        names.all(|name| users.contains(&name))
    };
    let Some(first) = groups.next() else {
        return false;
    };
    !users.is_empty() && known(first) && groups.all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n\
        bob:x:1001:1001::/home/bob:/bin/sh\ncarl:x:1002:1001::/home/carl:/bin/sh\nbroken\n::::\n";
    const GROUP: &str =
        "root:x:0:\nann:x:1000:\nbob:x:1001:\nteam:x:2000:ann,bob\nonly:x:2001:ann\nbroken\n";

    #[test]
    fn a_user_is_alone_or_not() {
        for (uid, gid, expected) in [
            (0, 0, true),
            (1000, 1000, true),
            (1000, 2001, true),
            // Another user's primary group, in both directions.
            (1001, 1001, false),
            (1000, 1001, false),
            // A group with another member, an unknown group, an unknown user.
            (1000, 2000, false),
            (1000, 3000, false),
            (1009, 2001, false),
            (1009, 0, false),
        ] {
            assert_eq!(
                only_member(PASSWD, GROUP, uid, gid),
                expected,
                "{uid} {gid}"
            );
        }
        // The same group twice, once with others in it.
        let twice = format!("{GROUP}ann2:x:1000:bob\n");
        assert!(!only_member(PASSWD, &twice, 1000, 1000));
        assert!(!only_member("", GROUP, 1000, 1000));
    }
}
