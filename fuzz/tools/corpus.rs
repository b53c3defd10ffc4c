//! Packs found inputs into one file and out again: `corpus pack|unpack FOLDER FILE`.
//!
//! A packed file has one input a line, in hex, sorted: two thousand tiny files
//! become nine that a diff can show. It does nothing else; `tools/fuzz` calls it.

use std::fs;
use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["pack", folder, file] => pack(Path::new(folder), Path::new(file)),
        ["unpack", folder, file] => unpack(Path::new(folder), Path::new(file)),
        _ => Err(io::Error::other("corpus pack|unpack FOLDER FILE")),
    }
}

fn pack(folder: &Path, file: &Path) -> io::Result<()> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder)? {
        let bytes = fs::read(entry?.path())?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(hex + "\n");
    }
    lines.sort_by_key(|line| (line.len(), line.clone()));
    fs::write(file, lines.concat())
}

fn unpack(folder: &Path, file: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, line) in fs::read_to_string(file)?.lines().enumerate() {
        let byte = |at: usize| u8::from_str_radix(line.get(at..at + 2).unwrap_or(""), 16);
        let bytes: Result<Vec<u8>, _> = (0..line.len()).step_by(2).map(byte).collect();
        let bytes = bytes.map_err(io::Error::other)?;
        fs::write(folder.join(format!("packed-{number:04}")), bytes)?;
    }
    Ok(())
}
