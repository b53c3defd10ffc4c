//! What `bowline serve --check` prints: the configuration in force, as the
//! file that would say the same.

use std::fmt::{self, Write as _};
use std::path::Path;

use super::ServerConfig;

impl ServerConfig {
    /// The configuration as TOML; reading it again gives the same.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_server(&mut text);
        let _ = self.write_limits(&mut text);
        let _ = self.write_secrets(&mut text);
        text
    }

    fn write_server(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "listen = {}", list(&self.listen))?;
        writeln!(out, "host_key = {}", path(&self.host_key))?;
        writeln!(out, "state_dir = {}", path(&self.state_dir))?;
        writeln!(out, "authorized_keys = {}", path(&self.authorized_keys))?;
        writeln!(out, "ssh_authorized_keys = {}", self.ssh_authorized_keys)?;
        writeln!(out, "own_user_only = {}", self.own_user_only)?;
        writeln!(out, "allow_users = {}", list(&self.allow_users))?;
        writeln!(
            out,
            "allow_locked_accounts = {}",
            self.allow_locked_accounts
        )?;
        match &self.gate_user {
            Some(user) => writeln!(out, "gate_user = {}", quoted(user))?,
            None => writeln!(out, "# gate_user: bowline, else nobody")?,
        }
        writeln!(out, "kill_grace = \"{}\"", duration(self.kill_grace_ms))?;
        writeln!(out, "drain = \"{}\"", duration(self.drain_ms))
    }

    fn write_limits(&self, out: &mut String) -> fmt::Result {
        let gate = &self.gate;
        writeln!(out, "\n[limits]")?;
        writeln!(out, "workers = {}", gate.workers)?;
        writeln!(out, "jobs_max = {}", self.jobs_max)?;
        writeln!(out, "connections_max = {}", gate.connections_max)?;
        let per_address = gate.connections_per_address_max;
        writeln!(out, "connections_per_address_max = {per_address}")?;
        writeln!(out, "handshakes_max = {}", gate.handshakes_max)?;
        let per_connection = gate.jobs_per_connection_max;
        writeln!(out, "jobs_per_connection_max = {per_connection}")?;
        writeln!(out, "jobs_per_user_max = {}", gate.jobs_per_user_max)?;
        writeln!(out, "auth_timeout = \"{}\"", duration(gate.auth_timeout_ms))?;
        writeln!(out, "idle_timeout = \"{}\"", duration(gate.idle_timeout_ms))?;
        writeln!(out, "output_wait = \"{}\"", duration(gate.output_wait_ms))?;
        writeln!(out, "grace = \"{}\"", duration(gate.grace_ms))?;
        writeln!(out, "grace_max = \"{}\"", duration(gate.grace_max_ms))?;
        writeln!(out, "\n[record]")?;
        writeln!(out, "dir = {}", path(&gate.record_dir))?;
        writeln!(out, "jobs_max = {}", gate.record_jobs_max)?;
        writeln!(out, "age = \"{}\"", duration(gate.record_age_ms))?;
        let spool = &gate.spool;
        writeln!(out, "\n[spool]")?;
        writeln!(out, "dir = {}", path(&spool.dir))?;
        writeln!(out, "stream_bytes_max = {}", spool.stream_bytes_max)?;
        writeln!(out, "bytes_max = {}", spool.bytes_max)?;
        writeln!(out, "keep_for = \"{}\"", duration(spool.keep_ms))?;
        writeln!(out, "keep_bytes_max = {}", spool.keep_bytes_max)
    }

    fn write_secrets(&self, out: &mut String) -> fmt::Result {
        for (user, file) in &self.secrets {
            writeln!(out, "\n[[secret]]")?;
            writeln!(out, "user = {}", quoted(user))?;
            writeln!(out, "file = {}", path(file))?;
        }
        Ok(())
    }
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut string = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => string.extend(['\\', c]),
            c if c.is_control() => string.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => string.push(c),
        }
    }
    string.push('"');
    string
}

/// In the largest unit that divides it.
fn duration(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    match UNITS
        .iter()
        .find(|(unit, _)| ms != 0 && ms.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None if ms == 0 => "0".to_owned(),
        None => format!("{ms}ms"),
    }
}
