//! The chat service: a person on each side, and on this side one person for many clients.
//!
//! What clients say is shown with who they are. What the operator types answers the one
//! that was picked, or whose message has waited longest; an empty line ends it. A client
//! gets nothing but answers, one for each message, because stock clients read once after
//! each send.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufRead as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use bowline::net::{Connection, ServiceError};
use tokio::sync::{Notify, mpsc};

use super::screen::Screen;

/// Messages of one client that may wait for an answer; more is not read meanwhile.
const WAITING_MAX: usize = 16;

/// The service; clones share the clients.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    clients: Arc<Mutex<Clients>>,
    said: Arc<Notify>,
    screen: Screen,
}

#[derive(Debug, Default)]
struct Clients {
    next: u64,
    there: BTreeMap<u64, Entry>,
    /// Whose message waits, one entry for each message, the oldest first.
    waiting: VecDeque<u64>,
    /// The operator's input has ended: nobody will be answered any more.
    alone: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    answers: mpsc::Sender<Answer>,
}

#[derive(Debug)]
enum Answer {
    Text(String),
    End,
}

impl Chat {
    pub(crate) fn new(screen: Screen) -> Self {
        Self {
            clients: Arc::default(),
            said: Arc::default(),
            screen,
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one client.
    ///
    /// # Errors
    /// What ends its connection.
    pub(crate) async fn serve(&self, conn: &mut Connection) -> Result<(), ServiceError> {
        let (answers, mut to_send) = mpsc::channel(WAITING_MAX);
        let name = conn.peer().to_string();
        let number = {
            let mut clients = self.clients();
            clients.next += 1;
            let number = clients.next;
            let name = name.clone();
            clients.there.insert(number, Entry { name, answers });
            number
        };
        let _there = There { chat: self, number };
        let shown = format!("[{number}] {name}");
        let mut unanswered = 0;
        loop {
            tokio::select! {
                biased;
                answer = to_send.recv() => {
                    unanswered -= 1;
                    match answer {
                        Some(Answer::Text(text)) => conn.send(text.as_bytes()).await?,
                        Some(Answer::End) | None => return Ok(()),
                    }
                }
                read = conn.read(), if unanswered < WAITING_MAX => {
                    let Some(bytes) = read? else { return Ok(()) };
                    self.screen.show(&shown, &bytes).await;
                    let mut clients = self.clients();
                    if clients.alone {
                        return Ok(());
                    }
                    clients.waiting.push_back(number);
                    unanswered += 1;
                    self.said.notify_one();
                }
            }
        }
    }

    /// Takes the operator's lines until they end; then those who wait are ended, and who
    /// says something afterwards too.
    pub(crate) async fn operate(self, mut lines: mpsc::Receiver<String>, terminal: bool) {
        let mut picked = None;
        while let Some(line) = lines.recv().await {
            if terminal && let Some(command) = line.strip_prefix('/') {
                self.command(command, &mut picked).await;
                continue;
            }
            let answered = if terminal {
                let target = self.target(picked);
                if target.is_none() {
                    self.screen
                        .line("nobody waits for an answer (/who, /to N)".to_owned())
                        .await;
                }
                target
            } else {
                Some(self.longest_waiting().await)
            };
            if let Some(number) = answered {
                self.answer(number, line);
            }
        }
        let mut clients = self.clients();
        clients.alone = true;
        let waiting = std::mem::take(&mut clients.waiting);
        for number in waiting {
            if let Some(entry) = clients.there.get(&number) {
                let _ = entry.answers.try_send(Answer::End);
            }
        }
    }

    async fn command(&self, command: &str, picked: &mut Option<u64>) {
        let line = match command.split_once(' ') {
            None if command == "who" => self.who(*picked),
            Some(("to", number)) => match number.trim().parse() {
                Ok(number) if self.clients().there.contains_key(&number) => {
                    *picked = Some(number);
                    format!("answers go to [{number}]")
                }
                _ => "there is no such client".to_owned(),
            },
            None if command == "to" => {
                *picked = None;
                "answers go to whoever has waited longest".to_owned()
            }
            _ => "/who shows the clients, /to N picks one, /to the longest waiting".to_owned(),
        };
        self.screen.line(line).await;
    }

    fn who(&self, picked: Option<u64>) -> String {
        let clients = self.clients();
        let lines = clients.there.iter().map(|(number, entry)| {
            let waiting = clients.waiting.iter().filter(|it| *it == number).count();
            let mark = if picked == Some(*number) { "*" } else { " " };
            format!("{mark}[{number}] {}, {waiting} waiting", entry.name)
        });
        let lines: Vec<String> = lines.collect();
        match lines.is_empty() {
            true => "nobody is there".to_owned(),
            false => lines.join("\n"),
        }
    }

    /// Whom a line of the terminal answers: the one that was picked, if it waits.
    fn target(&self, picked: Option<u64>) -> Option<u64> {
        let mut clients = self.clients();
        let picked = picked.filter(|number| clients.there.contains_key(number));
        let at = match picked {
            Some(number) => clients.waiting.iter().position(|it| *it == number)?,
            None => 0,
        };
        clients.waiting.remove(at)
    }

    async fn longest_waiting(&self) -> u64 {
        loop {
            let said = self.said.notified();
            if let Some(number) = self.clients().waiting.pop_front() {
                return number;
            }
            said.await;
        }
    }

    fn answer(&self, number: u64, line: String) {
        let answer = match line.is_empty() {
            true => Answer::End,
            false => Answer::Text(line),
        };
        // There is room for an answer to each message that waits; a client that has gone
        // meanwhile needs none.
        if let Some(entry) = self.clients().there.get(&number) {
            let _ = entry.answers.try_send(answer);
        }
    }
}

/// A client that is there; when dropped it is not, and nothing of it waits.
struct There<'a> {
    chat: &'a Chat,
    number: u64,
}

impl Drop for There<'_> {
    fn drop(&mut self) {
        let mut clients = self.chat.clients();
        clients.there.remove(&self.number);
        clients.waiting.retain(|number| *number != self.number);
    }
}

/// Reads stdin in a thread of its own, which ends with it or with the process: a read
/// from a terminal cannot be called off.
///
/// # Errors
/// Where no thread can be had.
pub(crate) fn stdin_lines() -> anyhow::Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel(1);
    let read = move || {
        let mut line = Vec::new();
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']).to_owned();
            if sender.blocking_send(text).is_err() {
                return;
            }
            line.clear();
        }
    };
    std::thread::Builder::new()
        .name("operator".to_owned())
        .spawn(read)
        .context("a thread for stdin")?;
    Ok(lines)
}
