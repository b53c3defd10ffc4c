//! Where a client's lines come from: a person at a prompt, with line editing and
//! history, or stdin as it is.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// What a person sees.
const PROMPT: &str = ">>: ";
/// The longest line that is taken from stdin.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Lines without their ends.
pub(super) enum Lines {
    Person {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
    },
    Stdin(io::BufReader<io::Stdin>),
}

impl Lines {
    /// A prompt where stdin and stdout are a terminal.
    ///
    /// # Errors
    /// Where the terminal cannot be used.
    pub(super) fn open() -> anyhow::Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Stdin(io::BufReader::new(io::stdin())));
        }
        let mut editor = DefaultEditor::new()?;
        let history = history_file();
        if let Some(path) = &history {
            // There is none before the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self::Person {
            editor: Box::new(editor),
            history,
        })
    }

    /// The next line; `None` at the end of the input.
    ///
    /// # Errors
    /// As read(2), or where a line has no end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        match self {
            Self::Person { editor, history } => {
                let Some(line) = ask(editor)? else {
                    if let Some(path) = history {
                        // A folder that cannot be written keeps nobody from leaving.
                        let _ = editor.save_history(path);
                    }
                    return Ok(None);
                };
                editor.add_history_entry(&line)?;
                if let Some(path) = history {
                    let _ = editor.append_history(path);
                }
                Ok(Some(line.into_bytes()))
            }
            Self::Stdin(stdin) => {
                let mut line = Vec::new();
                let mut limited = io::Read::take(stdin, LINE_BYTES_MAX);
                if limited.read_until(b'\n', &mut line)? == 0 {
                    return Ok(None);
                }
                if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
                    anyhow::bail!("a line of stdin is longer than {LINE_BYTES_MAX} bytes");
                }
                for end in [b'\n', b'\r'] {
                    if line.last() == Some(&end) {
                        line.pop();
                    }
                }
                Ok(Some(line))
            }
        }
    }
}

fn ask(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => return Ok(Some(line)),
            // Ctrl-C drops what was typed, as in a shell.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// `$XDG_STATE_HOME/bowline/plain_history`, its folder made where it is missing.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|folder| folder.is_absolute()).or_else(|| {
        let home = std::env::home_dir().filter(|home| home.is_absolute())?;
        Some(home.join(".local/state"))
    })?;
    let folder = state.join("bowline");
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder);
    made.ok().map(|()| folder.join("plain_history"))
}
