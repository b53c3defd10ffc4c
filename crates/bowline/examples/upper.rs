//! The service of the README: `upper tcp://127.0.0.1:7000` sends back what comes, in
//! capitals. `tests/readme.rs` runs it and compares it with the README.

#![allow(clippy::print_stdout, missing_docs)]

use bowline::net::{Connection, ServerBuilder, ServiceError, StreamService};

struct Upper;

impl StreamService for Upper {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        while let Some(mut bytes) = connection.read().await? {
            bytes.make_ascii_uppercase();
            connection.send(&bytes).await?;
        }
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen = std::env::args().nth(1).ok_or("upper ADDRESS")?.parse()?;
    let server = ServerBuilder::new().listen(listen).stream(Upper).await?;
    println!("listening on {}", server.handle().endpoints()[0]);
    server.serve().await;
    Ok(())
}
