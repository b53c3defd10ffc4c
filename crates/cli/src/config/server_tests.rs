//! Tests of the server's configuration: what file, flags and defaults say together.

use super::*;

fn machine(root: bool) -> Machine {
    let below = |path: &str| PathBuf::from(path);
    match root {
        true => Machine {
            root,
            home: below("/root"),
            config_dir: below("/etc/bowline"),
            state_dir: below("/var/lib/bowline"),
            runtime_dir: below("/run"),
            session_dirs: Vec::new(),
            ssh_host_key: Some(below("/etc/ssh/ssh_host_ed25519_key")),
            ipv6: true,
        },
        false => Machine {
            root,
            home: below("/home/ann"),
            config_dir: below("/home/ann/.config/bowline"),
            state_dir: below("/home/ann/.local/state/bowline"),
            runtime_dir: below("/run/user/1000"),
            session_dirs: Vec::new(),
            ssh_host_key: None,
            ipv6: true,
        },
    }
}

fn merged(text: &str, flags: &ServeFlags, root: bool) -> Result<ServerConfig, ConfigError> {
    let file = file::parse(text, Path::new("server.toml"))?;
    ServerConfig::merge(file, flags, &machine(root))
}

fn of(text: &str) -> ServerConfig {
    merged(text, &ServeFlags::default(), true).unwrap()
}

fn error(text: &str) -> String {
    let merged = merged(text, &ServeFlags::default(), true);
    merged.unwrap_err().to_string()
}

/// The documented file with every key in force.
fn documented() -> String {
    let text = include_str!("../../../../docs/server.toml");
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documented_file_says_exactly_the_defaults() {
    assert_eq!(of(include_str!("../../../../docs/server.toml")), of(""));
    let documented = of(&documented());
    let default = of("");
    assert_eq!(documented.gate_user.as_deref(), Some("bowline"));
    let documented = ServerConfig {
        gate_user: None,
        ..documented
    };
    assert_eq!(documented, default);
}

#[test]
fn every_key_is_documented() {
    // serde itself says which keys there are.
    for (section, prefix) in [
        ("", ""),
        ("limits", "[limits]\n"),
        ("record", "[record]\n"),
        ("spool", "[spool]\n"),
    ] {
        let parsed = toml::from_str::<ServerFile>(&format!("{prefix}zzz = 1"));
        let message = parsed.unwrap_err().message().to_owned();
        let keys: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 2, "{message}");
        let table: toml::Table = documented().parse().unwrap();
        let table = match section {
            "" => &table,
            section => table[section].as_table().unwrap(),
        };
        for key in keys.into_iter().filter(|key| *key != "secret") {
            assert!(table.contains_key(key), "{section} {key}");
        }
    }
    assert!(documented().contains("[[secret]]"));
}

#[test]
fn defaults_of_an_ordinary_user() {
    let config = merged("", &ServeFlags::default(), false).unwrap();
    assert_eq!(config.listen, ["tcp://[::]:7322"]);
    assert_eq!(
        config.host_key,
        Path::new("/home/ann/.config/bowline/host_key")
    );
    assert_eq!(
        config.state_dir,
        Path::new("/home/ann/.local/state/bowline")
    );
    assert_eq!(config.gate.record_dir, config.state_dir.join("record"));
    assert_eq!(
        config.authorized_keys,
        Path::new("/home/ann/.config/bowline/authorized_keys")
    );
    assert!(config.ssh_authorized_keys && config.own_user_only);
    // Nobody but root can become somebody else, whatever the file says.
    let config = merged("own_user_only = false", &ServeFlags::default(), false).unwrap();
    assert!(config.own_user_only);
}

#[test]
fn root_without_ssh_and_ipv6() {
    let machine = Machine {
        ssh_host_key: None,
        ipv6: false,
        ..machine(true)
    };
    let flags = ServeFlags::default();
    let config = ServerConfig::merge(ServerFile::default(), &flags, &machine).unwrap();
    assert_eq!(config.listen, ["tcp://0.0.0.0:7322"]);
    assert_eq!(config.host_key, Path::new("/etc/bowline/host_key"));
    assert!(!config.ssh_authorized_keys && !config.own_user_only);
    assert!(config.allow_users.is_empty());
}

#[test]
fn flags_replace_what_the_file_says() {
    let text = "listen = [\"127.0.0.1:1\"]\nallow_users = [\"ann\"]\nssh_authorized_keys = true\n\
                state_dir = \"/a\"\nhost_key = \"/b\"\n[limits]\nworkers = 3";
    let flags = ServeFlags {
        listen: vec!["unix:/run/x".to_owned()],
        authorized_keys: Some(PathBuf::from("/flag/keys")),
        host_key: Some(PathBuf::from("relative")),
        state_dir: Some(PathBuf::from("/flag/state")),
        allow_user: vec!["ben".to_owned()],
        workers: Some(5),
        ..ServeFlags::default()
    };
    let config = merged(text, &flags, true).unwrap();
    assert_eq!(config.listen, ["unix:/run/x"]);
    assert_eq!(config.authorized_keys, Path::new("/flag/keys"));
    assert!(!config.ssh_authorized_keys);
    assert!(config.host_key.is_absolute() && config.host_key.ends_with("relative"));
    assert_eq!(config.state_dir, Path::new("/flag/state"));
    assert_eq!(config.gate.record_dir, Path::new("/flag/state/record"));
    assert_eq!(config.allow_users, ["ben"]);
    assert_eq!(config.gate.workers, 5);
}

#[test]
fn one_session_serves_its_own_account_in_a_folder_of_its_own() {
    let stdio = ServeFlags {
        stdio: true,
        ..ServeFlags::default()
    };
    let config = merged("allow_users = [\"ann\"]\nstate_dir = \"/a\"", &stdio, true).unwrap();
    assert!(config.own_user_only);
    assert!(config.listen.is_empty());
    let name = format!("/run/bowline-stdio-{}", std::process::id());
    assert_eq!(config.state_dir, Path::new(&name));
    let lifeline = ServeFlags {
        lifeline: true,
        ..ServeFlags::default()
    };
    assert!(merged("", &lifeline, true).unwrap().own_user_only);
    let until_idle = ServeFlags {
        until_idle: Some(std::time::Duration::from_millis(1500)),
        ..ServeFlags::default()
    };
    let config = merged("allow_users = [\"ann\"]", &until_idle, true).unwrap();
    assert!(config.own_user_only);
    assert_eq!(config.until_idle_ms, Some(1500));
    let named = ServeFlags {
        allow_user: vec!["ann".to_owned()],
        ..lifeline
    };
    let config = merged("", &named, true).unwrap();
    assert!(!config.own_user_only && config.allow_users == ["ann"]);
    assert!(merged("", &named, false).unwrap().own_user_only);
}

#[test]
fn a_server_with_a_lifeline_reads_no_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("server.toml"), "this is no TOML").unwrap();
    let machine = Machine {
        config_dir: folder.path().to_owned(),
        ..machine(false)
    };
    let mut flags = ServeFlags::default();
    assert!(ServerConfig::load_on(&flags, &machine).is_err());
    flags.lifeline = true;
    ServerConfig::load_on(&flags, &machine).unwrap();
    let named = ServeFlags {
        config: Some(folder.path().join("missing.toml")),
        ..ServeFlags::default()
    };
    let missing = ServerConfig::load_on(&named, &machine);
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

#[test]
fn addresses_are_brought_to_one_form() {
    for (given, expected) in [
        ("127.0.0.1:80", "tcp://127.0.0.1:80"),
        ("127.0.0.1", "tcp://127.0.0.1:7322"),
        ("tcp://localhost:0", "tcp://localhost:0"),
        ("[::1]:80", "tcp://[::1]:80"),
        ("[::1]", "tcp://[::1]:7322"),
        ("::", "tcp://[::]:7322"),
        ("unix:/run/a b", "unix:/run/a b"),
    ] {
        assert_eq!(listen_address(given).unwrap(), expected);
    }
    for wrong in [
        "",
        ":80",
        "host:port",
        "host:65536",
        "a:b:c",
        "[::1",
        "[host]:1",
        "unix:relative",
        "http://host:1",
        "user@host:1",
        "[::1]x",
    ] {
        let error = listen_address(wrong)
            .map(|_| wrong)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("listen: "), "{error}");
    }
    assert_eq!(error("listen = []"), "listen: there is no address");
}

#[test]
fn values_that_make_no_sense_are_named() {
    assert_eq!(
        error("state_dir = \"a\""),
        "state_dir: a must begin with / or ~/"
    );
    let zero = error("[limits]\nhandshakes_max = 0");
    assert_eq!(zero, "limits.handshakes_max: must be at least 1");
    assert!(error("[limits]\nworkers = 65").starts_with("limits.workers: "));
    assert!(error("[limits]\nauth_timeout = \"0\"").starts_with("limits.auth_timeout: "));
    assert!(error("[limits]\nconnections_max = -1").starts_with("server.toml:2: "));
    let unknown = "[[secret]]\nuser = \"a\"\nfil = \"/x\"";
    assert_eq!(
        error(unknown),
        "server.toml:3: there is no key `fil`; did you mean `file`?"
    );
    let home = of("host_key = \"~/key\"\n[[secret]]\nuser = \"a\"\nfile = \"~/s\"");
    assert_eq!(home.host_key, Path::new("/root/key"));
    assert_eq!(home.secrets, [("a".to_owned(), PathBuf::from("/root/s"))]);
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let text = "listen = [\"127.0.0.1:1\", \"unix:/a\\\"b\"]\nallow_users = [\"ann\", \"b\\u0007\"]\n\
                gate_user = \"gate\"\nkill_grace = \"1500ms\"\ndrain = \"0\"\n[record]\nage = \"36h\"\n\
                [[secret]]\nuser = \"ann\"\nfile = \"/s\"";
    for config in [of(text), of("")] {
        assert_eq!(of(&config.to_toml()), config, "{}", config.to_toml());
    }
}

#[test]
fn a_reload_keeps_what_only_a_restart_can_change() {
    let old = of("");
    let new = of("listen = [\"127.0.0.1:1\"]\nallow_users = [\"ann\"]\n[limits]\nworkers = 63");
    let (kept, waiting) = old.keep_fixed(new.clone());
    assert_eq!(waiting, ["listen", "limits.workers"]);
    assert_eq!(kept.listen, old.listen);
    assert_eq!(kept.gate.workers, old.gate.workers);
    assert_eq!(kept.allow_users, ["ann"]);
    assert_eq!(old.keep_fixed(old.clone()), (old.clone(), vec![]));
}
