//! `bowline authorize`: lines that the server and ssh-keygen read, and files that are left alone.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use bowline::credentials::authorize::{AuthorizeError, Authorized, authorize, read_key};
use bowline::credentials::fingerprint;
use bowline::credentials::private_file::FileError;
use bowline_proto::grants;
use bowline_proto::key::PublicKey;

use crate::real::{Home, public};

#[test]
fn keys_are_found_in_public_and_private_files() {
    let home = Home::new();
    for (kind, passphrase) in [("ed25519", ""), ("ecdsa", "secret")] {
        let path = home.key(kind, (kind, ""), passphrase);
        let (key, comment) = read_key(&home.join(format!("{kind}.pub"))).unwrap();
        assert_eq!((&key, comment.as_str()), (&public(&path), "test@bowline"));
        assert_eq!(read_key(&path).unwrap().0, key);
    }
    let nothing = home.write("nothing", "hello\n", 0o600);
    assert!(matches!(
        read_key(&nothing),
        Err(AuthorizeError::NoKey { .. })
    ));
    let pem = home.write("pem", "-----BEGIN RSA PRIVATE KEY-----\n", 0o600);
    assert!(matches!(
        read_key(&pem),
        Err(AuthorizeError::PrivateKey { .. })
    ));
}

#[test]
fn a_line_is_added_once() {
    let home = Home::new();
    let file = home.join("config/bowline/authorized_keys");
    let (one, two) = (
        PublicKey::from_ed25519(&[1; 32]),
        public(&home.key("rsa", ("rsa", "2048"), "")),
    );
    let add = |key, options| authorize(&file, key, "me@there", options).unwrap();
    assert_eq!(add(&one, None), Authorized::Added);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    let options = r#"from="10.0.0.0/8",command="/bin/ls -l \"x\"""#;
    assert_eq!(add(&two, Some(options)), Authorized::Added);
    assert_eq!(add(&two, None), Authorized::AlreadyThere { line: 2 });
    assert_eq!(
        add(&one, Some("restrict")),
        Authorized::AlreadyThere { line: 1 }
    );
    let content = std::fs::read(&file).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&content),
        format!("{one} me@there\n{options} {two} me@there\n")
    );
    let (found, warnings) = grants::parse(&content);
    assert_eq!((found.len(), warnings.len()), (2, 0));
    assert_eq!(
        found[1].options.command.as_deref(),
        Some(&br#"/bin/ls -l "x""#[..])
    );
    let listed = home.keygen(["-lf".as_ref(), file.as_os_str()]);
    for key in [&one, &two] {
        assert!(listed.contains(&fingerprint(key)), "{listed}");
    }
}

#[test]
fn what_the_server_would_refuse_is_not_added() {
    let home = Home::new();
    let key = PublicKey::from_ed25519(&[1; 32]);
    let file = home.join("authorized_keys");
    for options in [
        "unknown",
        "cert-authority",
        "command=\"x",
        "pty,",
        "pty\nssh-ed25519 AAAA",
        "command=\"a\nb\"",
        "# comment",
        "pty ssh-ed25519 AAAA",
    ] {
        let refused = authorize(&file, &key, "", Some(options));
        assert!(matches!(refused, Err(AuthorizeError::Line(_))), "{options}");
    }
    assert!(!file.exists());
    // A comment cannot add a line of its own.
    authorize(&file, &key, "a\nb\u{1b}[2J", None).unwrap();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("{key} ab[2J\n")
    );
}

#[test]
fn a_file_that_others_may_change_is_left_alone() {
    let home = Home::new();
    let key = PublicKey::from_ed25519(&[1; 32]);
    let file = home.write("authorized_keys", "# no end of line", 0o646);
    assert!(matches!(
        authorize(&file, &key, "", None),
        Err(AuthorizeError::File(FileError::WritableByOthers { .. }))
    ));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(authorize(&file, &key, "", None).unwrap(), Authorized::Added);
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        format!("# no end of line\n{key}\n")
    );
}

/// sshd's parser and ours agree on where the options of a line end.
#[test]
fn ssh_keygen_finds_the_same_keys_behind_options() {
    let home = Home::new();
    let mut file = String::new();
    let options = [
        r#"command="a b""#,
        r#"command="a \"b\" c",no-pty"#,
        r#"restrict,from="10.*,!10.1.*""#,
        r#"environment="A=\"",command="x # y""#,
        "no-pty",
    ];
    for (number, options) in options.iter().enumerate() {
        let key = PublicKey::from_ed25519(&[number as u8; 32]);
        file.push_str(&format!("{options} {key} c{number}\n"));
    }
    let path = home.write("authorized_keys", &file, 0o600);
    let listed = home.keygen(["-lf".as_ref(), path.as_os_str()]);
    let (found, warnings) = grants::parse(file.as_bytes());
    assert_eq!(warnings, []);
    assert_eq!(found.len(), options.len());
    assert_eq!(listed.lines().count(), options.len());
    for (grant, line) in found.iter().zip(listed.lines()) {
        assert!(line.contains(&fingerprint(&grant.key)), "{line}");
    }
}
