//! Parse, signals, one call, print, exit. The only reader of the clock.

use std::ffi::OsStr;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use backstay::cli::app::{App, Output, Status};
use backstay::cli::progress::Held;
use backstay::cli::{self, Cli, Command, Global};
use backstay::error::{Error, ErrorKind, Result};
use backstay::units::Clock;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Set by the panic hook: whatever the command says, the run has failed.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// The answer of `check-s3` to every error: unknown.
const NAGIOS_UNKNOWN: u8 = 3;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(on_panic));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => return usage(&err),
    };
    let mut app = app(&cli.global);
    let signalled = Arc::new(AtomicU8::new(0));
    let result = start_logging(&cli.global)
        .and_then(|()| change_user(&mut app, &cli.global))
        .and_then(|()| run(&app, &cli.command, &signalled))
        .and_then(|()| app.out.finish());
    let code = exit_code(&result, &cli.command, &app, signalled.load(Ordering::SeqCst));
    if let Err(err) = &result {
        complain(err, code, &app);
    }
    ExitCode::from(code)
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
fn app(global: &Global) -> App {
    App {
        config_path: global.config.clone(),
        preloaded: None,
        json: global.json,
        quiet: global.quiet,
        verbose: global.verbose,
        clock: Clock::new(chrono::Utc::now),
        cancel: CancellationToken::new(),
        out: Output::stdout(),
        status: Status::default(),
        held: Held::default(),
    }
}

/// Becomes the user that was asked for, after the configuration and its secrets have been read: that user may not be
/// able to.
fn change_user(app: &mut App, global: &Global) -> Result<()> {
    if let Some(user) = &global.r#become {
        let mut config = app.config()?;
        config.hold_secrets();
        app.preloaded = Some(Arc::new(config));
        backstay::privilege::become_user(user)?;
    }
    Ok(())
}

fn run(app: &App, command: &Command, signalled: &Arc<AtomicU8>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io(e, "could not start the runtime"))?;
    let result = runtime.block_on(async {
        listen(app.cancel.clone(), signalled.clone())?;
        let app = app.clone();
        dispatch(&app, command).await
    });
    runtime.shutdown_background();
    result
}

async fn dispatch(app: &App, command: &Command) -> Result<()> {
    match command {
        Command::Demo(args) => cli::demo::run(app, args).await,
        Command::Backup(args) => cli::backup::run(app, args).await,
        Command::List(args) => cli::list::run(app, args).await,
        Command::CheckS3(args) => cli::check_s3::run(app, args).await,
        Command::Restore(args) => cli::restore::run(app, args).await,
        Command::Verify(args) => cli::verify::run(app, args).await,
        Command::Drill(args) => cli::drill::run(app, args).await,
        Command::Accept(args) => cli::accept::run(app, args).await,
        Command::Prune(args) => cli::prune::run(app, args).await,
        Command::Config(args) => cli::config::run(app, args).await,
        Command::Report(args) => cli::report::run(app, args).await,
        Command::TestAlert(args) => cli::test_alert::run(app, args).await,
        Command::Completions(args) => cli::completions::run(app, args).await,
        Command::Man(args) => cli::man::run(app, args).await,
        Command::RestoreScripts(args) => cli::restore_scripts::run(app, args).await,
    }
}

/// The first SIGINT or SIGTERM cancels what runs, so that it cleans up; a second one ends the process at once.
fn listen(cancel: CancellationToken, signalled: Arc<AtomicU8>) -> Result<()> {
    let failed = |e| Error::io(e, "could not listen for signals");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            if cancel.is_cancelled() {
                #[allow(clippy::exit, reason = "asked for twice: the next run cleans up")]
                std::process::exit(i32::from(code));
            }
            signalled.store(code, Ordering::SeqCst);
            cancel.cancel();
        }
    });
    Ok(())
}

fn exit_code(result: &Result<()>, command: &Command, app: &App, signalled: u8) -> u8 {
    let panicked = PANICKED.load(Ordering::SeqCst);
    match result {
        _ if panicked => ErrorKind::Internal.exit_code(),
        Ok(()) => app.status.get(),
        Err(err) if err.kind == ErrorKind::Cancelled && signalled != 0 => signalled,
        Err(_) if matches!(command, Command::CheckS3(_)) => NAGIOS_UNKNOWN,
        Err(err) => err.kind.exit_code(),
    }
}

/// A wrong command line is 64, help and version are 0.
fn usage(err: &clap::Error) -> ExitCode {
    let wrong = err.use_stderr();
    if wrong && std::env::args_os().any(|arg| arg == OsStr::new("--json")) {
        let text = err.to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        say(&exit_error(ErrorKind::Usage.exit_code(), message, None));
    } else {
        // Nobody is left to tell when this fails.
        let _ = err.print();
    }
    ExitCode::from(if wrong { ErrorKind::Usage.exit_code() } else { 0 })
}

fn complain(err: &Error, code: u8, app: &App) {
    for warning in app.held.take() {
        say(&cli::progress::warning_line(app.json, &warning));
    }
    if app.json {
        say(&exit_error(code, &err.chain(), err.hint.as_deref()));
    } else {
        say(&err.report());
    }
}

fn exit_error(code: u8, message: &str, hint: Option<&str>) -> String {
    serde_json::json!({"message_type": "exit_error", "code": code, "message": message, "hint": hint}).to_string()
}

/// Says it on stderr; when that is closed there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn start_logging(global: &Global) -> Result<()> {
    let asked = std::env::var("BACKSTAY_LOG").ok().filter(|s| !s.is_empty());
    let filter = asked.as_deref().unwrap_or(match global.verbose {
        0 => "off",
        1 => "backstay=info",
        2 => "backstay=debug",
        _ => "debug",
    });
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        Error::new(ErrorKind::Config, format!("wrong value of BACKSTAY_LOG: {filter:?}"))
            .caused_by(e)
            .hint("write a level such as `debug`, or `backstay::source=trace`.")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}

/// A bug is said once and remembered; unwinding goes on, so that children are stopped and uploads aborted.
fn on_panic(info: &PanicHookInfo<'_>) {
    PANICKED.store(true, Ordering::SeqCst);
    let at = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
    let text = info.payload_as_str().unwrap_or("no message");
    say(&format!("error: a bug in backstay{at}: {text}\nhint: report this line; restore points made before are safe."));
}
