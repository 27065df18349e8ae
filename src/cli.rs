//! The command line: types and help texts, no logic. One file per command in `cli/`, called by `main.rs`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::units::{Cadence, Span};

pub mod accept;
pub mod app;
pub mod backup;
pub mod check_s3;
pub mod completions;
pub mod config;
pub mod demo;
pub mod drill;
pub mod list;
pub mod man;
pub mod progress;
pub mod prune;
pub mod report;
pub mod restore;
pub mod test_alert;
pub mod verify;

/// Where the configuration is when neither `--config` nor `$BACKSTAY_CONFIG` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/backstay/backstay.yml";

const AFTER_HELP: &str = "\
Examples:
  backstay demo                    see the whole way on sample data, no server needed
  backstay config check            is the configuration right?
  backstay backup                  whatever is due now
  backstay list                    what can be restored
  backstay restore postgres latest --to /srv/restored";

const AFTER_LONG_HELP: &str = "\
Examples:
  backstay demo                    see the whole way on sample data, no server needed
  backstay config check            is the configuration right?
  backstay backup                  whatever is due now
  backstay list                    what can be restored
  backstay restore postgres latest --to /srv/restored

Exit codes:
  0  done              10  incomplete: something was stored, something was not
  1  failed            64  wrong command line
  65 damage found      66  no such service, point or object
  69 unavailable       70  a bug
  73 refused           75  locked by another run
  77 denied            78  wrong configuration, or a tool is missing
  130, 143             stopped by SIGINT, SIGTERM
`check-s3` speaks Nagios instead: 0 ok, 1 warning, 2 critical, 3 unknown.
Any other code must be taken as a failure.

Environment:
  BACKSTAY_CONFIG      the configuration file, as --config
  BACKSTAY_LOG         what is logged to stderr, such as `debug` or `backstay::source=trace`";

/// Backs up, proves and restores databases and files.
#[derive(Debug, Parser)]
#[command(name = "backstay", version, about, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The configuration file; `conf.d/*.yml` beside it is read too [default: /etc/backstay/backstay.yml]
    #[arg(long, global = true, value_name = "FILE", env = "BACKSTAY_CONFIG", hide_env_values = true)]
    #[arg(value_hint = ValueHint::FilePath, help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// One JSON object per line, with a `message_type` in each
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print nothing on success
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Log to stderr what is done (-vv: more, -vvv: everything)
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Become this user before anything else; the configuration is read before
    #[arg(long, global = true, hide = true, value_name = "USER")]
    pub r#become: Option<String>,
}

/// One variant per command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole way, from backup to restore, on sample data in a directory; needs no server
    Demo(DemoArgs),
    /// Make the restore points that are due
    Backup(BackupArgs),
    /// Show the restore points that can be restored
    List(ListArgs),
    /// Check, from the destinations alone, that every service has a fresh restore point
    #[command(name = "check-s3")]
    CheckS3(CheckS3Args),
    /// Bring a restore point back
    Restore(RestoreArgs),
    /// Check that a restore point is there, undamaged and readable
    Verify(VerifyArgs),
    /// Restore into a scratch directory, compare with what was captured, take the time, and record it
    Drill(DrillArgs),
    /// Declare a suspect restore point good
    Accept(AcceptArgs),
    /// Remove the restore points that retention no longer keeps
    Prune(PruneArgs),
    /// Check or show the configuration
    Config(ConfigArgs),
    /// Make a page that says what exists where, how old it is, why it is kept, and what is not covered
    Report(ReportArgs),
    /// Send a test message to everyone who gets alarms
    TestAlert(TestAlertArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man(ManArgs),
}

/// `backstay demo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  backstay demo\n  backstay demo /tmp/backstay-demo")]
pub struct DemoArgs {
    /// An empty or new directory; a temporary one, removed at the end, without it
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// Which cadence a backup is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CadenceChoice {
    /// The highest enabled cadence whose current period has no point yet
    #[default]
    Auto,
    /// This hour's
    Hourly,
    /// Today's
    Daily,
    /// This week's
    Weekly,
    /// This month's
    Monthly,
    /// This year's
    Yearly,
}

impl CadenceChoice {
    /// The cadence asked for; `None` = decide from what is there.
    pub fn cadence(self) -> Option<Cadence> {
        match self {
            Self::Auto => None,
            Self::Hourly => Some(Cadence::Hourly),
            Self::Daily => Some(Cadence::Daily),
            Self::Weekly => Some(Cadence::Weekly),
            Self::Monthly => Some(Cadence::Monthly),
            Self::Yearly => Some(Cadence::Yearly),
        }
    }
}

/// `backstay backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay backup                          whatever is due now, all services
  backstay backup postgres --dry-run       what would be done, and why
  backstay backup blobdb --cadence weekly  this week's point, even if there is one
  backstay backup postgres --manual        a point that is never removed by itself")]
pub struct BackupArgs {
    /// Services; all without it
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Make the point of this cadence, due or not
    #[arg(long, value_enum, default_value_t, value_name = "CADENCE")]
    pub cadence: CadenceChoice,
    /// Make a point that retention never removes
    #[arg(long, conflicts_with = "cadence")]
    pub manual: bool,
    /// Say what would be done and why, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `backstay list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay list
  backstay list postgres --from offsite
  backstay list --from offsite --host db2     another host's points
  backstay list --json | jq -r .id")]
pub struct ListArgs {
    /// Services; all without it
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Only what lies at this destination; `local` = the services' own directories
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// The points of this host
    #[arg(long, value_name = "HOST", conflicts_with = "all_hosts")]
    pub host: Option<String>,
    /// The points of all hosts
    #[arg(long)]
    pub all_hosts: bool,
}

/// `backstay check-s3`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay check-s3                  this host's services; exit code 0, 1, 2 or 3 as Nagios knows them
  backstay check-s3 postgres
  backstay check-s3 --all-hosts      every host in the buckets, or those of `check.expect`")]
pub struct CheckS3Args {
    /// Services; all without it
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Every host under the prefix, and everything `check.expect` says must be there
    #[arg(long)]
    pub all_hosts: bool,
}

/// `backstay restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay restore                                      what can be gone back to, and how old it is
  backstay restore blobdb latest --plan                 what would happen, and how long it takes
  backstay restore --all --plan                         everything, in the order in which it is to be done
  backstay restore blobdb latest --to /srv/restored
  backstay restore postgres latest --replace --start    over the old data, which is moved aside
  backstay restore postgres --at 2026-11-20T03:00:00Z --to /srv/pg
  backstay restore postgres latest --database orders --as orders_old
  backstay restore postgres latest --from offsite --host db2 --to /srv/pg
  backstay restore search latest --index 'orders-*' --as 'restored-*'")]
#[command(group(clap::ArgGroup::new("part").args(["database", "index"]).multiple(true)))]
pub struct RestoreArgs {
    /// The service; without it, or without a point, the choices are shown and nothing is restored
    pub service: Option<String>,
    /// The restore point's id, or `latest`
    pub point: Option<String>,
    /// Say what would happen, what it needs and how long it takes, and do nothing
    #[arg(long)]
    pub plan: bool,
    /// All services, blobs before the database that refers to them; only with `--plan`
    #[arg(long, requires = "plan", conflicts_with_all = ["service", "to", "database"])]
    pub all: bool,
    /// The newest complete point that was started at or before this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "point", value_parser = parse_time)]
    pub at: Option<DateTime<Utc>>,
    /// Read it from this destination; `local` = the service's own directory. Without it: the nearest that has it
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// A point of this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Directory to restore into; the service's own place without it
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: Option<PathBuf>,
    /// Allow a target that holds data: it is moved aside, and kept; indices are deleted, once the new ones were counted
    #[arg(long)]
    pub replace: bool,
    /// Owner of everything that is restored
    #[arg(long, value_name = "USER:GROUP")]
    pub owner: Option<String>,
    /// Only this database
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Only indices and data streams that match this pattern (may be repeated)
    #[arg(long, value_name = "PATTERN", conflicts_with = "database")]
    pub index: Vec<String>,
    /// Restore the database, or the index, under this name; for several indices with a `*` for the old name
    #[arg(long = "as", alias = "rename", value_name = "NAME", requires = "part")]
    pub rename: Option<String>,
    /// Restore the aliases of indices too
    #[arg(long)]
    pub aliases: bool,
    /// Restore cluster settings and templates too
    #[arg(long)]
    pub global_state: bool,
    /// Restore what there is of an index that was not captured whole
    #[arg(long)]
    pub allow_partial: bool,
    /// Start the server and wait until its recovery has ended
    #[arg(long)]
    pub start: bool,
    /// How long its recovery may take, such as 30m
    #[arg(long, value_name = "DURATION", requires = "start", value_parser = parse_span)]
    pub wait: Option<Span>,
    /// Put the tablespace of directory OLD into directory NEW (may be repeated)
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_map)]
    pub map: Vec<(PathBuf, PathBuf)>,
    /// File with the private key, as `age-keygen` wrote it, for an encrypted point
    #[arg(long, value_name = "FILE", env = "BACKSTAY_IDENTITY", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,
    /// CouchDB: without databases of replication jobs, which start with the node
    #[arg(long)]
    pub no_replicator: bool,
    /// CouchDB: the files are in place and the node is up; rewrite its shard maps and compare
    #[arg(long, conflicts_with_all = ["start", "replace", "to", "database"])]
    pub only_finish: bool,
    /// Keep `standby.signal` and `primary_conninfo` of a copy that was taken from a standby
    #[arg(long)]
    pub keep_standby: bool,
}

/// How deep `verify` looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// Every artefact is there with the right length; nothing is read
    Present,
    /// And every byte is what was written
    #[default]
    Digest,
    /// And the store's own tools accept what is in it
    Format,
}

/// `backstay verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay verify postgres                    the newest point, every byte of it
  backstay verify postgres --level format     and what is in it
  backstay verify blobdb blobdb_production_daily_2026_11_20_000312 --from offsite")]
pub struct VerifyArgs {
    /// The service
    pub service: String,
    /// The restore point's id, or `latest`
    #[arg(default_value = "latest")]
    pub point: String,
    /// How deep to look
    #[arg(long, value_enum, default_value_t)]
    pub level: Level,
    /// Only at this destination; everywhere it lies without it
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// A point of this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// File with the private key, as `age-keygen` wrote it, to look into an encrypted point
    #[arg(long, value_name = "FILE", env = "BACKSTAY_IDENTITY", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,
}

/// `backstay drill`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay drill                               the newest point of every service
  backstay drill --random                      any kept point; every one is visited in time
  backstay drill blobdb --stream               compare without storing anything
  backstay drill postgres postgres_production_daily_2026_11_20_000312
  backstay drill postgres --host db1 --identity key.txt    on another host, which has the key")]
pub struct DrillArgs {
    /// Services, all without it; or one service and the id of a restore point
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// A point chosen at random from all that are kept; what was not drilled for long is likelier
    #[arg(long)]
    pub random: bool,
    /// Read it from this destination; without it from a remote one, or `local` if there is no other
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// A point of this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Compare while reading, without storing anything, where the store can
    #[arg(long)]
    pub stream: bool,
    /// File with the private key, as `age-keygen` wrote it, for an encrypted point
    #[arg(long, value_name = "FILE", env = "BACKSTAY_IDENTITY", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,
}

/// `backstay accept`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backstay accept blobdb blobdb_production_daily_2026_11_20_000312")]
pub struct AcceptArgs {
    /// The service
    pub service: String,
    /// The restore point's id
    pub point: String,
}

/// `backstay prune`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay prune --dry-run       what would be removed, what is kept, and why
  backstay prune postgres
  backstay prune postgres --point postgres_production_manual_2026_11_20_101500
                                 this one only, such as a manual point that is no longer wanted
  backstay prune --legacy-older-than 90d --dry-run
                                 what the older system left")]
pub struct PruneArgs {
    /// Services; all without it
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Remove this restore point and no other, whatever retention says; never the last complete one
    #[arg(long, value_name = "ID")]
    pub point: Option<String>,
    /// Remove backups of commcare-cloud that are older than this, such as 90d, and nothing else; never before there is a
    /// complete restore point at the same place
    #[arg(long, value_name = "AGE", conflicts_with = "point")]
    pub legacy_older_than: Option<Span>,
    /// Only at this destination; `local` is the service's own directory
    #[arg(long, value_name = "DEST")]
    pub from: Option<String>,
    /// Say what would be removed and why, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `backstay config`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay config check
  backstay config show
  backstay config schema > backstay.schema.json")]
pub struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What `config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with it; needs no network and no credentials
    Check(ConfigCheckArgs),
    /// Print what is in force, defaults included
    #[command(after_help = "Example:\n  backstay config show")]
    Show,
    /// Print the JSON Schema of the configuration, for editors
    #[command(after_help = "Example:\n  backstay config schema > backstay.schema.json")]
    Schema,
}

/// `backstay config check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay config check
  backstay config check --file new.yml       this file alone, without conf.d
  backstay config check --file - < new.yml")]
pub struct ConfigCheckArgs {
    /// This file alone instead of the configured one; `-` reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
}

/// `backstay report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay report --output /srv/www/backups.html     one page of HTML that needs nothing else
  backstay report postgres > postgres.html
  backstay report --json | jq .services")]
pub struct ReportArgs {
    /// Services; all without it
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Write the page to this file, which only its owner can read; standard output without it
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// `backstay test-alert`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backstay test-alert")]
pub struct TestAlertArgs {}

/// `backstay completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backstay completions bash > /etc/bash_completion.d/backstay")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `backstay man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay man | man -l -
  backstay man restore | man -l -
  backstay man --dir /usr/local/share/man/man1")]
pub struct ManArgs {
    /// The page of this command; the page of `backstay` itself without it
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    pub command: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|t| t.to_utc())
        .map_err(|_| "write it as 2026-11-20T03:00:00Z or 2026-11-20T04:00:00+01:00".to_owned())
}

fn parse_span(text: &str) -> Result<Span, String> {
    text.parse().map_err(|e: crate::error::Error| e.hint.unwrap_or(e.message))
}

fn parse_map(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => Ok((old.into(), new.into())),
        _ => Err("write it as /old/directory=/new/directory".to_owned()),
    }
}
