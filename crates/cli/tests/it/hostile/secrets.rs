//! Proofs of a shared secret that prove nothing, and the one that does.

use std::io::Write as _;

use bowline::credentials::secret::Secret;
use bowline_proto::auth::{Binding, Role};
use bowline_proto::frame::Kind;
use bowline_proto::limits::PROTOCOL;
use serde_json::json;

use super::raw::{Raw, hello, message, user};
use super::witness::Witness;

fn auth(user: &str, mac: &[u8; 32]) -> Vec<u8> {
    let proof = json!({"type": "secret", "mac": hex::encode(mac)});
    message(Kind::Auth, 0, &json!({"user": user, "proofs": [proof]}))
}

#[test]
fn codes_of_a_shared_secret() {
    let mut witness = Witness::start_with("", |_, dir| {
        Secret::create(&dir.join("secret")).unwrap();
        let config = dir.join("server.toml");
        let mut config = std::fs::File::options().append(true).open(config).unwrap();
        let file = dir.join("secret");
        writeln!(config, "[[secret]]\nuser = {:?}\nfile = {file:?}", user()).unwrap();
    });
    let server = &witness.server;
    let secret = Secret::load(&server.dir().join("secret")).unwrap();
    let other = Secret::create(&server.dir().join("other")).unwrap();
    let introduced = || {
        let mut raw = Raw::tls(server);
        raw.expect(Kind::Hello);
        raw.send(&hello());
        raw
    };
    let good = |raw: &Raw| secret.code(Role::Client, &raw.binding(), &user(), PROTOCOL);
    // Its own proof comes back, and it is not ours sent back.
    let mut raw = introduced();
    let code = good(&raw);
    raw.send(&auth(&user(), &code));
    let granted = raw.expect(Kind::Granted);
    let theirs = secret.code(Role::Server, &raw.binding(), &user(), PROTOCOL);
    assert_eq!(granted.text("mac"), hex::encode(theirs));
    assert_ne!(theirs, code);
    let denied = |name: &str, user: &str, mac: &dyn Fn(&Raw) -> [u8; 32]| {
        let mut raw = introduced();
        let mac = mac(&raw);
        raw.send(&auth(user, &mac));
        assert_eq!(raw.refusal(), "not_authenticated", "{name}");
    };
    let me = &user();
    denied("a code of another connection", me, &|_| code);
    denied("the server's own code", me, &|raw| {
        secret.code(Role::Server, &raw.binding(), me, PROTOCOL)
    });
    denied("a code of another secret", me, &|raw| {
        other.code(Role::Client, &raw.binding(), me, PROTOCOL)
    });
    denied("a code for another user", me, &|raw| {
        secret.code(Role::Client, &raw.binding(), "somebody", PROTOCOL)
    });
    denied("a code for another protocol", me, &|raw| {
        secret.code(Role::Client, &raw.binding(), me, "bowline/2")
    });
    denied("a code over the other kind of binding", me, &|raw| {
        let Binding::Exporter(bytes) = raw.binding() else {
            panic!("TLS has an exporter");
        };
        secret.code(Role::Client, &Binding::Nonce(bytes), me, PROTOCOL)
    });
    denied("a user whom the secret does not let in", "daemon", &|raw| {
        secret.code(Role::Client, &raw.binding(), "daemon", PROTOCOL)
    });
    denied("one bit changed", me, &|raw| {
        let mut code = good(raw);
        code[31] ^= 1;
        code
    });
    witness.check("codes that prove nothing");
}
