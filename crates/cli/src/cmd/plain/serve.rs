//! `bowline plain serve`: plain services on their addresses, until a signal.
//!
//! Flags or a configuration file enter; the bound addresses leave on stdout, one a line,
//! and the exit status at the end.

use std::io::{IsTerminal as _, Write as _};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bowline::net::{Endpoint, ServerBuilder, ServerHandle, Stopped};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

use super::options::{ServeFlags, ServiceOptions};
use super::user;
use crate::exit;
use crate::plain::Service;
use crate::plain::chat::{self, Chat};
use crate::plain::exec::Exec;
use crate::plain::keeper::Keeper;
use crate::plain::places::Places;
use crate::plain::runner::{Allowance, Runner};
use crate::plain::screen::Screen;
use crate::plain::service::{Challenge, Handler, Shared};
use crate::plain::time::Time;

/// Only this user may connect to a Unix socket.
const UNIX_MODE: u32 = 0o600;

/// # Errors
/// Where the flags or the file make no sense, or an address cannot be used.
pub(crate) fn serve(flags: &ServeFlags) -> anyhow::Result<ExitCode> {
    let (services, common) = flags.services()?;
    let user = user::commands_user(&services, common.user.as_deref())?;
    let runs_commands = services
        .iter()
        .any(|options| options.service == Service::Exec);
    // The keeper forks and execs: before there is a second thread here.
    let keeper = runs_commands
        .then(|| {
            Keeper::start(
                user.as_ref().map(|it| it.name.as_str()),
                common.state_dir.as_deref(),
            )
        })
        .transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let served = LocalSet::new().block_on(&runtime, all(&services, user.as_ref(), keeper.as_ref()));
    runtime.shutdown_background();
    if let Some(keeper) = keeper {
        keeper.finish();
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Binds everything, says so, gives up what power is not needed, and serves.
async fn all(
    services: &[ServiceOptions],
    user: Option<&user::Account>,
    keeper: Option<&Keeper>,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (screen, screen_thread) = Screen::start()?;
    let mut tasks = JoinSet::new();
    let (runner, driver) = keeper.map(|keeper| Runner::new(keeper.address())).unzip();
    let mut servers = Servers::default();
    for options in services {
        let handler = handler(options, runner.as_ref(), &screen, &mut tasks)?;
        open(options, Shared(Arc::new(handler)), &mut servers).await?;
    }
    if let Some(user) = user {
        user.become_it()?;
    }
    if let Some(mut driver) = driver {
        if let Err(error) = driver.connect().await {
            bail!("commands cannot be run: {}", exit::chain(&error));
        }
        tasks.spawn_local(driver.drive());
    }
    let Servers { handles, serve } = servers;
    let mut serving = JoinSet::new();
    for server in serve {
        serving.spawn(server);
    }
    announce(&handles);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    handles.iter().for_each(ServerHandle::stop);
    // Each server's own deadline bounds this; a second signal ends it at once.
    tokio::select! {
        () = async { while serving.join_next().await.is_some() {} } => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    serving.shutdown().await;
    tasks.shutdown().await;
    drop(screen);
    // What was said last is shown, if somebody reads it.
    let shown = tokio::task::spawn_blocking(move || screen_thread.join());
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), shown).await;
    Ok(())
}

/// Open sockets whose clients still wait in the kernel, and the work of serving them.
#[derive(Default)]
struct Servers {
    handles: Vec<ServerHandle>,
    serve: Vec<Pin<Box<dyn Future<Output = Stopped> + Send>>>,
}

/// Opens a service's sockets.
async fn open(
    options: &ServiceOptions,
    service: Shared,
    servers: &mut Servers,
) -> anyhow::Result<()> {
    let of = |datagrams: bool| {
        let endpoints = options.listen.iter();
        let endpoints: Vec<_> = endpoints
            .filter(|endpoint| endpoint.is_datagram() == datagrams)
            .collect();
        let builder = ServerBuilder::new()
            .backlog(options.backlog())
            .limits(options.limits())
            .stop_within(options.drain())
            .unix_mode(UNIX_MODE);
        (!endpoints.is_empty()).then(|| {
            let add =
                |builder: ServerBuilder, endpoint: &&Endpoint| builder.listen((*endpoint).clone());
            endpoints.iter().fold(builder, add)
        })
    };
    if let Some(builder) = of(false) {
        let builder = builder.authentication(Challenge(options.secret()?));
        let server = builder.stream(service.clone()).await?;
        servers.handles.push(server.handle());
        servers.serve.push(Box::pin(server.serve()));
    }
    if let Some(builder) = of(true) {
        let server = builder.datagram(service).await?;
        servers.handles.push(server.handle());
        servers.serve.push(Box::pin(server.serve()));
    }
    Ok(())
}

/// The addresses are the first lines on stdout.
fn announce(handles: &[ServerHandle]) {
    let mut stdout = std::io::stdout().lock();
    for endpoint in handles.iter().flat_map(ServerHandle::endpoints) {
        // Whoever started the server need not listen to it.
        let _ = writeln!(stdout, "{endpoint}");
    }
    let _ = stdout.flush();
}

fn handler(
    options: &ServiceOptions,
    runner: Option<&Runner>,
    screen: &Screen,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Handler> {
    Ok(match options.service {
        Service::Upper => Handler::Upper,
        Service::Stamp => Handler::Stamp,
        Service::Greet => Handler::Greet {
            text: options.text(),
            screen: screen.clone(),
        },
        Service::Chat => {
            let chat = Chat::new(screen.clone());
            let terminal = std::io::stdin().is_terminal();
            tasks.spawn(chat.clone().operate(chat::stdin_lines()?, terminal));
            Handler::Chat(chat)
        }
        Service::Show => Handler::Show(screen.clone()),
        Service::Time => Handler::Time(Time::new(options.text_from.clone(), options.local_stratum)),
        Service::Exec => {
            let Some(runner) = runner else {
                bail!("there is nobody to run commands");
            };
            let cwd = options.cwd.as_ref().map(|cwd| {
                use std::os::unix::ffi::OsStrExt as _;
                cwd.as_os_str().as_bytes().to_vec()
            });
            Handler::Exec(Exec {
                runner: runner.clone(),
                style: options.style(),
                allowance: Arc::new(Allowance {
                    output_bytes_max: options.output_bytes_max(),
                    time: options.command_time,
                    cwd,
                }),
                places: Places::new(options.commands_per_client()),
            })
        }
    })
}

impl ServiceOptions {
    fn secret(&self) -> anyhow::Result<Option<crate::plain::challenge::Secret>> {
        let digest = self.digest.unwrap_or_default();
        self.secret_file
            .as_deref()
            .map(|path| crate::plain::challenge::Secret::load(path, digest))
            .transpose()
            .context("the service cannot be started")
    }
}
