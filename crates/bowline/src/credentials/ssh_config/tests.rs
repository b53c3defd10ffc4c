//! Tests of what ssh's configuration says about a host.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A home with files in its `.ssh`, `config` among them.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(files: &[(&str, &str)]) -> Home {
        let home = Home {
            dir: tempfile::tempdir().unwrap(),
        };
        for (name, content) in files {
            let path = home.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(".ssh").join(name)
    }

    fn try_lookup(&self, host: &str) -> Result<HostConfig, SshConfigError> {
        let asker = Asker {
            home: self.dir.path(),
            user: "me",
            remote_user: None,
        };
        lookup(&[self.path("config"), self.path("machine")], host, &asker)
    }

    fn lookup(&self, host: &str) -> HostConfig {
        self.try_lookup(host).unwrap()
    }
}

fn config(content: &str) -> Home {
    Home::new(&[("config", content)])
}

#[test]
fn nothing_is_said_without_files() {
    assert_eq!(Home::new(&[]).lookup("host"), HostConfig::default());
}

#[test]
fn the_first_value_counts_and_blocks_are_for_their_hosts() {
    let home = config(
        "User everybody\n\
         Host b\n HostName %h.example.com\n\
         Host a* !ab\n HostName a.example\n User late\n\
         HOST=\"b\"\n hostname late.example\n\
         Host *\n HostName fallback\n",
    );
    for (host, name) in [
        ("aa", "a.example"),
        ("AA", "fallback"),
        ("ab", "fallback"),
        ("b", "b.example.com"),
        ("c", "fallback"),
    ] {
        let found = home.lookup(host);
        assert_eq!(found.host_name.as_deref(), Some(name), "{host}");
        assert_eq!(found.user.as_deref(), Some("everybody"));
    }
}

#[test]
fn match_blocks_are_passed_over_but_for_all() {
    let home = config(
        "Match host h exec \"touch /nowhere\"\n User matched\nInclude inside\n\
         Match ALL\n User all\n\
         Match final all\n HostName no\n",
    );
    let found = home.lookup("h");
    assert_eq!(found.user.as_deref(), Some("all"));
    assert_eq!(found.host_name, None);
}

#[test]
fn identities_add_up_and_are_expanded() {
    let home = config(
        "Host h\n HostName Real.Example\n User root\n\
         Host *\n IdentityFile ~/.ssh/%r@%h\n IdentityFile %d/k-%u-%n-100%%\n\
         IdentityFile /abs\n IdentityFile /abs\n IdentityFile ~other/x\n IdentityFile /%Z\n",
    );
    let files = home.lookup("h").identity_files.unwrap();
    let at = |name: &str| home.dir.path().join(name);
    assert_eq!(
        files,
        [
            at(".ssh/root@real.example"),
            at("k-me-h-100%"),
            PathBuf::from("/abs")
        ]
    );
    assert_eq!(config("").lookup("h").identity_files, None);
    let none = config("IdentityFile none").lookup("h");
    assert_eq!(none.identity_files, Some(Vec::new()));
}

#[test]
fn the_command_lines_user_outweighs_in_paths() {
    let home = config("User configured\nIdentityFile /keys/%r\n");
    let asker = Asker {
        home: home.dir.path(),
        user: "me",
        remote_user: Some("typed"),
    };
    let found = lookup(&[home.path("config")], "h", &asker).unwrap();
    assert_eq!(
        found.identity_files.unwrap(),
        [PathBuf::from("/keys/typed")]
    );
    assert_eq!(found.user.as_deref(), Some("configured"));
}

#[test]
fn agents_are_named() {
    let agent = |value: &str| {
        let home = config(&format!("IdentityAgent {value}\nIdentitiesOnly yes\n"));
        let found = home.lookup("h");
        assert!(found.identities_only);
        found.identity_agent.unwrap()
    };
    assert_eq!(agent("none"), IdentityAgent::None);
    assert_eq!(
        agent("SSH_AUTH_SOCK"),
        IdentityAgent::Variable("SSH_AUTH_SOCK".to_owned())
    );
    assert_eq!(agent("$OTHER"), IdentityAgent::Variable("OTHER".to_owned()));
    assert_eq!(
        agent("\"/run/my agent\""),
        IdentityAgent::Socket(PathBuf::from("/run/my agent"))
    );
}

#[test]
fn the_users_file_comes_before_the_machines() {
    let home = Home::new(&[
        ("config", "User mine\n"),
        ("machine", "User machine\nHostName machine\n"),
    ]);
    let found = home.lookup("h");
    assert_eq!(found.user.as_deref(), Some("mine"));
    assert_eq!(found.host_name.as_deref(), Some("machine"));
}

#[test]
fn files_are_included_where_they_stand() {
    let home = Home::new(&[
        (
            "config",
            "Host h\n Include d/*.conf ~/.ssh/one missing\n User late\nHost other\n Include bad\n",
        ),
        ("d/2.conf", "User second\nHost x\nHostName x\n"),
        ("d/1.conf", "Host h\nUser first\nHost y\nHostName y\n"),
        ("d/.hidden.conf", "HostName hidden\n"),
        ("d/3.other", "HostName other\n"),
        ("one", "HostName one\n"),
        ("bad", "User \"open\n"),
    ]);
    let found = home.lookup("h");
    assert_eq!(found.user.as_deref(), Some("first"));
    assert_eq!(found.host_name.as_deref(), Some("one"));
    assert!(matches!(
        home.try_lookup("other"),
        Err(SshConfigError::OpenQuote { line: 1, path }) if path.ends_with("bad")
    ));
}

#[test]
fn including_without_end_is_an_error() {
    let home = config("Include config\n");
    assert!(matches!(
        home.try_lookup("h"),
        Err(SshConfigError::Includes { .. })
    ));
    let names: Vec<_> = (0..FILES_MAX)
        .map(|number| format!("many/{number}"))
        .collect();
    let mut files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), "User x\n"))
        .collect();
    files.push(("config", "Include many/*\n"));
    assert!(matches!(
        Home::new(&files).try_lookup("h"),
        Err(SshConfigError::Includes { .. })
    ));
    // The two files asked for count too, also the missing one.
    assert!(Home::new(&files[2..]).try_lookup("h").is_ok());
    // Every file includes all: two of them are enough to double with each level.
    let home = Home::new(&[
        ("config", "Include d/*\n"),
        ("d/a", "Include d/*\n"),
        ("d/b", "Include d/*\n"),
    ]);
    assert!(matches!(
        home.try_lookup("h"),
        Err(SshConfigError::Includes { .. })
    ));
}

#[test]
fn unsafe_and_malformed_files_are_refused() {
    let home = config("User x\n");
    let path = home.path("config");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(matches!(
        home.try_lookup("h"),
        Err(SshConfigError::File(FileError::WritableByOthers { .. }))
    ));
    for content in [
        "HostName",
        "User \"\"",
        "IdentitiesOnly maybe",
        "HostName %x",
        "IdentityFile",
    ] {
        assert!(
            matches!(
                config(&format!("\n{content}\n")).try_lookup("h"),
                Err(SshConfigError::Value { line: 2, .. })
            ),
            "{content}"
        );
    }
    let long = "#".repeat(FILE_BYTES_MAX + 1);
    assert!(matches!(
        config(&long).try_lookup("h"),
        Err(SshConfigError::File(FileError::TooLong { .. }))
    ));
    // What bowline does not use is passed over, whatever it says.
    assert_eq!(
        config("Port x y z\nWhatever\nSendEnv LANG LC_*\n").lookup("h"),
        HostConfig::default()
    );
}
