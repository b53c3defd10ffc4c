//! ssh's configuration: what we read from a file is what `ssh -G` reads from it.

use std::path::PathBuf;

use bowline::credentials::ssh_config::{Asker, lookup};

use crate::real::{Home, succeeded};

const CONFIG: &str = r#"
# A configuration with some of everything.
IdentityFile /keys/first
Host web* !web9 "quoted host"
    HostName %h.example.com
    User=deploy
    IdentityFile "/keys/with blank/%h"
Host *.lab,other
    User never
HOST 10.0.0.? fe80::*
    user = net
    IdentityFile=/keys/%r-%n
Host a.lab
    HostName lab.internal # trailing
    IdentitiesOnly yes
Match host web1
    User matched
Match all
    IdentityFile /keys/all
Host "*"
    User fallback
    HostName fallback.example.com
    IdentityFile /keys/100%%
    Include @INCLUDED@
    Port 2222
"#;

const INCLUDED: &str =
    "Host web1\nIdentityFile /keys/included-web1\nHost *\nIdentityFile /keys/included\n";

#[test]
fn ssh_reads_the_same() {
    let home = Home::new();
    let included = home.write("included", INCLUDED, 0o600);
    // What `Match host` decides is passed over here, so the hosts are such that it decides nothing.
    let text = CONFIG.replace("@INCLUDED@", included.to_str().unwrap());
    let path = home.write("config", text, 0o600);
    for host in [
        "web1",
        "WEB2",
        "web9",
        "a.lab",
        "10.0.0.7",
        "10.0.0.77",
        "fe80::1",
        "quoted",
        "x",
    ] {
        let output = home
            .command("ssh")
            .arg("-G")
            .arg("-F")
            .arg(&path)
            .arg(host)
            .output()
            .unwrap();
        let said = succeeded(&output);
        let values = |keyword: &str| -> Vec<String> {
            said.lines()
                .filter_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '))
                .map(str::to_owned)
                .collect()
        };
        let asker = Asker {
            home: home.path(),
            user: "root",
            remote_user: None,
        };
        let found = lookup(std::slice::from_ref(&path), host, &asker).unwrap();
        let name = found.host_name.unwrap_or(host.to_owned());
        assert_eq!(
            vec![name.to_ascii_lowercase()],
            values("hostname"),
            "{host}"
        );
        assert_eq!(vec![found.user.unwrap()], values("user"), "{host}");
        let only = if found.identities_only { "yes" } else { "no" };
        assert_eq!(values("identitiesonly"), [only], "{host}");
        // ssh prints the names before the letters are put in.
        let files = found.identity_files.unwrap();
        let expected: Vec<PathBuf> = values("identityfile").iter().map(PathBuf::from).collect();
        assert_eq!(
            files.len(),
            expected.len(),
            "{host}: {files:?} {expected:?}"
        );
        for (file, expected) in files.iter().zip(&expected) {
            if !expected.to_string_lossy().contains('%') {
                assert_eq!(file, expected, "{host}");
            }
        }
    }
}
