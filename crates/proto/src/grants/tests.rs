//! Tests of grant lines, their options and what they permit.

use proptest::prelude::*;

use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

fn key() -> PublicKey {
    PublicKey::from_line(KEY).unwrap().0
}

/// Reads a line with these options in front of a good key.
fn options(text: &str) -> Result<Options, LineError> {
    parse_line(format!("{text} {KEY} me@here").as_bytes()).map(|(found, options)| {
        assert_eq!(found, key());
        options
    })
}

fn refused(text: &str) -> OptionsError {
    match options(text) {
        Err(LineError::Options(error)) => error,
        other => panic!("{text}: {other:?}"),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_file_is_read_line_by_line() {
    let file = format!(
        "# a comment\n\n   \n  {KEY}\r\n\t# another\nrestrict,command=\"/bin/ls -l\" {KEY} with a comment\nnonsense {KEY}\n{KEY}"
    );
    let (grants, warnings) = parse(file.as_bytes());
    let lines: Vec<_> = grants.iter().map(|grant| grant.line).collect();
    assert_eq!(lines, [4, 6, 8]);
    assert_eq!(grants[0].options, Options::default());
    assert_eq!(
        grants[1].options.command.as_deref(),
        Some(&b"/bin/ls -l"[..])
    );
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}")
    };
    assert_eq!(
        warning.to_string(),
        "line 7: the option nonsense is not known, so the whole line is refused"
    );
}

#[test]
fn one_keys_lines_are_found() {
    let other = PublicKey::from_ed25519(&[1; 32]);
    let file = format!("{other}\nbad {other}\npty {KEY} x\n{KEY}\nbad {KEY}\n");
    let (grants, warnings) = parse_for(file.as_bytes(), &key());
    assert_eq!(
        grants.iter().map(|grant| grant.line).collect::<Vec<_>>(),
        [3, 4]
    );
    assert_eq!(
        warnings
            .iter()
            .map(|warning| warning.line)
            .collect::<Vec<_>>(),
        [5]
    );
    // The key's text in a comment makes no grant of another key.
    let base64 = KEY.split(' ').nth(1).unwrap();
    let (grants, _) = parse_for(format!("{other} {base64}").as_bytes(), &key());
    assert!(grants.is_empty());
    // Only blanks and tabs part words, however the lines are looked for.
    for (between, found) in [(" \t", 1), ("\x0c", 0), (" \x0c", 0), ("\r", 0), (" \r", 0)] {
        for line in [
            format!("ssh-ed25519{between}{base64}"),
            format!("pty{between}{KEY}"),
        ] {
            assert_eq!(parse(line.as_bytes()).0.len(), found, "{line:?}");
            let (grants, _) = parse_for(line.as_bytes(), &key());
            assert_eq!(grants.len(), found, "{line:?}");
        }
    }
}

#[test]
fn quotes_hold_blanks_commas_and_quotes() {
    for (text, expected) in [
        (r#"command="""#, ""),
        (r#"command="a b,c""#, "a b,c"),
        (r#"COMMAND="say \"hi\" # x""#, r#"say "hi" # x"#),
        (r#"command="a\b\\ ""#, r#"a\b\\ "#),
        (r#"command="tab	and\"""#, "tab	and\""),
    ] {
        let command = options(text).unwrap().command;
        assert_eq!(command.as_deref(), Some(expected.as_bytes()), "{text}");
    }
    // A backslash in front of the last quote keeps it open, as with sshd.
    assert_eq!(options(r#"command="a\b\\""#), Err(LineError::OpenQuote));
}

#[test]
fn terminals_are_taken_and_given_from_left_to_right() {
    for (text, pty, restrict) in [
        ("pty", true, false),
        ("no-pty", false, false),
        ("NO-PTY", false, false),
        ("restrict", false, true),
        ("restrict,pty", true, true),
        ("pty,restrict", false, true),
        ("no-pty,pty", true, false),
        (
            "no-agent-forwarding,no-port-forwarding,no-X11-forwarding,no-user-rc",
            true,
            false,
        ),
        (
            "restrict,agent-forwarding,port-forwarding,x11-forwarding,user-rc",
            false,
            true,
        ),
        (
            r#"permitopen="localhost:80",permitopen="*:*",permitlisten="8080""#,
            true,
            false,
        ),
    ] {
        let options = options(text).unwrap();
        assert_eq!((options.pty, options.restrict), (pty, restrict), "{text}");
    }
}

#[test]
fn what_is_not_honoured_refuses_the_line() {
    for name in ["cert-authority", "no-touch-required", "verify-required"] {
        assert_eq!(refused(name), OptionsError::Unsupported(name_of(name)));
    }
    assert_eq!(
        refused(r#"principals="a""#),
        OptionsError::Unsupported("principals")
    );
    assert_eq!(
        refused(r#"tunnel="0""#),
        OptionsError::Unsupported("tunnel")
    );
    for text in [
        "no-restrict",
        "no-",
        "nopty",
        "ptyx",
        "command",
        "pty=\"\"",
        "x=\"\"",
        "from",
        "no-command=\"x\"",
    ] {
        assert!(matches!(refused(text), OptionsError::Unknown(_)), "{text}");
    }
    for text in [
        "command=ls",
        "command=",
        "from=*",
        "environment=A=b",
        "expiry-time=20300101",
        "permitopen=x",
    ] {
        assert!(matches!(refused(text), OptionsError::Unquoted(_)), "{text}");
    }
    for text in [
        "pty,",
        ",pty",
        "pty,,pty",
        r#"command="a"b"#,
        r#"command="a""b""#,
        r#"from="1.1.1.1"pty"#,
    ] {
        assert!(
            matches!(
                refused(text),
                OptionsError::Separator | OptionsError::Unknown(_)
            ),
            "{text}"
        );
    }
    assert_eq!(
        refused(r#"command="a",command="b""#),
        OptionsError::Twice("command")
    );
    assert_eq!(
        refused(r#"from="1.1.1.1",from="*""#),
        OptionsError::Twice("from")
    );
}

fn name_of(name: &str) -> &'static str {
    ["cert-authority", "no-touch-required", "verify-required"]
        .into_iter()
        .find(|known| *known == name)
        .unwrap()
}

#[test]
fn lines_without_a_good_key_are_refused() {
    let line = |text: &str| parse_line(text.as_bytes()).unwrap_err();
    assert_eq!(line("pty"), LineError::NoKey);
    assert_eq!(line("ssh-ed25519"), LineError::NoKey);
    assert_eq!(line("command=\"x"), LineError::OpenQuote);
    assert_eq!(line(&format!("command=\"x {KEY}")), LineError::OpenQuote);
    assert_eq!(
        line("pty ssh-ed25519 AAAA"),
        LineError::Key(KeyError::AlgorithmMismatch)
    );
    assert_eq!(
        line("ssh-ed25519 ****"),
        LineError::Key(KeyError::NotBase64)
    );
    assert_eq!(
        line("ssh-dss AAAA"),
        LineError::KeyType("ssh-dss".to_owned())
    );
    assert_eq!(
        line("ssh-ed25519-cert-v01@openssh.com AAAA"),
        LineError::KeyType("ssh-ed25519-cert-v01@openssh.com".to_owned())
    );
    assert_eq!(
        line("pty sk-ssh-ed25519@openssh.com AAAA"),
        LineError::KeyType("sk-ssh-ed25519@openssh.com".to_owned())
    );
    assert_eq!(
        line(&format!("pty pty {KEY}")),
        LineError::KeyType("pty".to_owned())
    );
    let mut short = Vec::new();
    crate::ssh_wire::put_string(&mut short, b"ssh-rsa");
    crate::ssh_wire::put_positive(&mut short, &[1, 0, 1]);
    crate::ssh_wire::put_positive(&mut short, &[0xff; 128]);
    let short = PublicKey::from_blob(&short).unwrap();
    assert_eq!(
        line(&short.to_string()),
        LineError::Key(KeyError::RsaSize { bits: 1024 })
    );
    assert_eq!(line(&format!("{KEY}\0")), LineError::Nul);
    let long = format!("{KEY} {}", "c".repeat(LINE_BYTES_MAX));
    assert_eq!(line(&long), LineError::TooLong);
    // What a message shows of a hostile file is short and printable.
    let LineError::Options(OptionsError::Unknown(shown)) =
        line("\x1b[2J\u{202e}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")
    else {
        panic!()
    };
    assert_eq!(shown.len(), 40);
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()));
}

#[test]
fn files_and_warnings_are_bounded() {
    let (grants, warnings) = parse(&vec![b'\n'; FILE_BYTES_MAX + 1]);
    assert!(grants.is_empty());
    assert_eq!(warnings[0].reason, LineError::FileTooLong);
    let (grants, warnings) = parse(format!("{}{KEY}", "x\n".repeat(1000)).as_bytes());
    assert_eq!(grants.len(), 1);
    assert_eq!(warnings.len(), WARNINGS_MAX + 1);
    assert_eq!(warnings[WARNINGS_MAX].reason, LineError::More);
}

#[test]
fn sources_are_matched() {
    for (list, address, expected) in [
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.0.0.0/8,!10.9.0.0/16", "10.9.1.1", false),
        ("!10.9.0.0/16,10.0.0.0/8", "10.9.1.1", false),
        ("!10.9.0.0/16", "10.8.1.1", false),
        ("!10.9.0.0/16,*", "10.8.1.1", true),
        ("192.168.1.*", "192.168.1.77", true),
        ("192.168.1.?", "192.168.1.77", false),
        ("*.example.com", "192.168.1.77", false),
        ("*", "::1", true),
        ("0.0.0.0/0", "192.168.1.77", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "10.0.0.1", false),
        ("::/0", "2001:db8::1", true),
        ("2001:db8::/32", "2001:db8:ffff::1", true),
        ("2001:db8::/32", "2001:db9::1", false),
        ("2001:DB8::1", "2001:db8::1", true),
        ("2001:db8:*", "2001:db8::1", true),
        ("2001:DB8:*", "2001:db8::1", true),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ("10.1.2.3/32", "10.1.2.3", true),
        ("::1/128", "::1", true),
        ("", "::1", false),
        (",,", "::1", false),
    ] {
        let source = Source::parse(list.as_bytes()).unwrap();
        assert_eq!(source.permits(ip(address)), expected, "{list} {address}");
    }
}

#[test]
fn malformed_sources_refuse_the_line() {
    for list in [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        "::/129",
        "2001:db8::1/32",
        "*/8",
        "host/8",
        "10.0.0.0/-1",
        "10.0.0.0/999",
    ] {
        assert_eq!(
            Source::parse(list.as_bytes()),
            Err(SourceError::Network),
            "{list}"
        );
    }
    for list in ["!bad.example.com,*", "*,!bad*"] {
        assert_eq!(
            Source::parse(list.as_bytes()),
            Err(SourceError::ExcludedName),
            "{list}"
        );
    }
    assert!(Source::parse("!10.*,!fe80::*,!?,*".as_bytes()).is_ok());
    assert_eq!(Source::parse("ü".as_bytes()), Err(SourceError::NotAscii));
    assert_eq!(
        refused(r#"from="10.0.0.1/8""#),
        OptionsError::Source(SourceError::Network)
    );
}

#[test]
fn without_an_address_no_source_is_good() {
    let limited = options(r#"from="*""#).unwrap();
    assert!(limited.permits_source(Some(ip("::1"))));
    assert!(!limited.permits_source(None));
    assert!(Options::default().permits_source(None));
}

#[test]
fn times_are_read() {
    // As `date -u -d … +%s` tells.
    for (text, unix) in [
        ("19700101Z", 0),
        ("20000229Z", 951_782_400),
        ("20000301Z", 951_868_800),
        ("19000301Z", -2_203_891_200),
        ("202611211234Z", 1_795_264_440),
        ("20261121123456Z", 1_795_264_496),
        ("20261121123456utc", 1_795_264_496),
        ("20991231235959Z", 4_102_444_799),
    ] {
        let expiry = Expiry::parse(text.as_bytes()).unwrap();
        assert_eq!(
            expiry.unix(|_| panic!("UTC asks nobody")),
            Some(unix),
            "{text}"
        );
    }
    let local = Expiry::parse(b"202611211234").unwrap();
    assert_eq!(local.zone, Zone::Local);
    assert_eq!(
        local.civil,
        Civil {
            year: 2026,
            month: 11,
            day: 21,
            hour: 12,
            minute: 34,
            second: 0
        }
    );
    assert_eq!(
        local.unix(|civil| Some(civil.utc_to_unix() - 3600)),
        Some(1_795_260_840)
    );
    for text in [
        "",
        "Z",
        "2026",
        "202611",
        "2026112",
        "202611211",
        "20261301",
        "20260230",
        "20250229",
        "20260001",
        "20260100",
        "2026010124",
        "202601012400",
        "202601010060",
        "20260101000060",
        "20260101 ",
        "+0260101",
        "20260101ZZ",
        "2026-01-01",
        "00000101",
    ] {
        assert_eq!(Expiry::parse(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn the_earliest_expiry_counts_and_the_unknown_has_passed() {
    let grant = |text: &str| Grant {
        line: 1,
        key: key(),
        options: options(text).unwrap(),
    };
    let nobody = |_: &Civil| None;
    let both = grant(r#"expiry-time="20000229Z",expiry-time="20991231Z""#);
    assert_eq!(both.check(None, 951_782_400, nobody), Ok(()));
    assert_eq!(both.check(None, 951_782_401, nobody), Err(Denied::Expired));
    let local = grant(r#"expiry-time="20000229""#);
    assert_eq!(local.check(None, 0, nobody), Err(Denied::Expired));
    assert_eq!(
        local.check(None, 0, |civil| Some(civil.utc_to_unix())),
        Ok(())
    );
    let from = grant(r#"from="10.0.0.0/8",expiry-time="20991231Z""#);
    assert_eq!(from.check(Some(ip("10.1.1.1")), 0, nobody), Ok(()));
    assert_eq!(
        from.check(Some(ip("11.1.1.1")), 0, nobody),
        Err(Denied::Source)
    );
    assert_eq!(from.check(None, 0, nobody), Err(Denied::Source));
    assert_eq!(refused(r#"expiry-time="soon""#), OptionsError::Expiry);
}

#[test]
fn variables_are_read() {
    let options =
        options(r#"environment="A=1 2",environment="_b9=",environment="C=\"=\"""#).unwrap();
    assert_eq!(options.environment, [&b"A=1 2"[..], b"_b9=", b"C=\"=\""]);
    for text in ["A", "=x", "A-B=x", "A B=x", ""] {
        assert_eq!(
            refused(&format!("environment=\"{text}\"")),
            OptionsError::Environment
        );
    }
}

proptest! {
    /// Any command that can be quoted at all comes back as it was.
    #[test]
    fn quoted_values_come_back(command in "[ -~]{0,40}", variable in "[ -~]{0,20}") {
        // A backslash in front of a quote, or at the end, cannot be written in this syntax.
        let quote = |text: &str| text.replace('"', "\\\"");
        let writable = |text: &str| !text.contains("\\\"") && !text.ends_with('\\');
        prop_assume!(writable(&command) && writable(&variable));
        let line = format!(
            "restrict,command=\"{}\",environment=\"V={}\",pty {KEY}",
            quote(&command),
            quote(&variable)
        );
        let (found, options) = parse_line(line.as_bytes()).unwrap();
        prop_assert_eq!(found, key());
        prop_assert_eq!(options.command, Some(command.into_bytes()));
        prop_assert_eq!(options.environment, vec![format!("V={variable}").into_bytes()]);
        prop_assert!(options.pty && options.restrict);
    }

    /// No bytes panic, and what is granted stands in the file.
    #[test]
    fn any_bytes_are_survived(
        parts in prop::collection::vec(
            prop_oneof![
                any::<Vec<u8>>(),
                prop::sample::select(vec![
                    KEY, "\n", " ", "\t", "\x0c", "\r", "\"", "\\", ",", "=", "command=\"", "from=\"", "pty", "restrict",
                    "no-", "expiry-time=\"2026", "environment=\"A=", "!10.0.0.0/8", "ssh-ed25519 ",
                ]).prop_map(|text| text.as_bytes().to_vec()),
            ],
            0..20,
        )
    ) {
        let file = parts.concat();
        let (grants, _) = parse(&file);
        for grant in &grants {
            prop_assert_eq!(&grant.key, &key());
        }
        let (found, _) = parse_for(&file, &key());
        prop_assert_eq!(found, grants);
    }

    /// A network permits exactly the addresses that share its first bits.
    #[test]
    fn networks_are_their_first_bits(address: u32, other: u32, prefix in 0u8..=32) {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let net = std::net::Ipv4Addr::from(address & mask);
        let source = Source::parse(format!("{net}/{prefix}").as_bytes()).unwrap();
        let permitted = source.permits(IpAddr::V4(other.into()));
        prop_assert_eq!(permitted, other & mask == address & mask);
        prop_assert!(source.permits(IpAddr::V4(address.into())));
    }
}
