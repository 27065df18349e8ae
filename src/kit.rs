//! The restore kit of a point: `RESTORE.md`, rendered for this very point, and the scripts it needs, as artefacts of
//! the role `kit`. They are stored as they are, never compressed or encrypted, and hold no secret.

use handlebars::{Handlebars, Helper, HelperResult, Output, RenderContext, no_escape};
use serde_json::json;

use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Algorithm, Artefact, Manifest};

/// What all scripts share; it lies beside them.
const COMMON: (&str, &str) = ("common", include_str!("../restore-scripts/common.sh"));

/// How one method of one kind is restored without Backstay.
struct Way {
    kind: &'static str,
    method: &'static str,
    what: &'static str,
    /// Its script, without `.sh`, if there is one.
    script: Option<(&'static str, &'static str)>,
    by_hand: &'static str,
    /// Programs besides those that every way needs.
    programs: &'static [&'static str],
}

const BLOBDIR: (&str, &str) = ("restore-blobdir", include_str!("../restore-scripts/restore-blobdir.sh"));
const COUCHDB: (&str, &str) = ("restore-couchdb", include_str!("../restore-scripts/restore-couchdb.sh"));
const ELASTICSEARCH: (&str, &str) =
    ("restore-elasticsearch", include_str!("../restore-scripts/restore-elasticsearch.sh"));
const POSTGRES: (&str, &str) = ("restore-postgres", include_str!("../restore-scripts/restore-postgres.sh"));

/// All ways. A kind that is not here has a `RESTORE.md` that says where the format is described.
const WAYS: &[Way] = &[
    Way {
        kind: "blobdir",
        method: "files",
        what: "a directory of files",
        script: Some(BLOBDIR),
        by_hand: include_str!("../templates/by-hand/blobdir.md.hbs"),
        programs: &[],
    },
    Way {
        kind: "couchdb",
        method: "files",
        what: "the data directory of a CouchDB node",
        script: Some(COUCHDB),
        by_hand: include_str!("../templates/by-hand/couchdb.md.hbs"),
        programs: &["curl"],
    },
    Way {
        kind: "elasticsearch",
        method: "snapshot",
        what: "the names of snapshots of an Elasticsearch or OpenSearch cluster (the data lies in its repositories)",
        script: Some(ELASTICSEARCH),
        by_hand: include_str!("../templates/by-hand/elasticsearch.md.hbs"),
        programs: &["curl"],
    },
    Way {
        kind: "postgres",
        method: "plain",
        what: "a whole PostgreSQL cluster, byte for byte (`pg_basebackup`)",
        script: Some(POSTGRES),
        by_hand: include_str!("../templates/by-hand/postgres-plain.md.hbs"),
        programs: &["postgres"],
    },
    Way {
        kind: "postgres",
        method: "dump",
        what: "all of a PostgreSQL cluster as SQL (`pg_dumpall`)",
        script: Some(POSTGRES),
        by_hand: include_str!("../templates/by-hand/postgres-dump.md.hbs"),
        programs: &["psql"],
    },
    Way {
        kind: "postgres",
        method: "databases",
        what: "the databases of a PostgreSQL cluster, one by one (`pg_dump`)",
        script: Some(POSTGRES),
        by_hand: include_str!("../templates/by-hand/postgres-databases.md.hbs"),
        programs: &["psql", "pg_restore"],
    },
];

const RESTORE_MD: &str = include_str!("../templates/RESTORE.md.hbs");
const README: &str = include_str!("../templates/README.hbs");
const OTHER_KINDS: &str = "The format of restore points is described in `docs/format.md` of Backstay's sources.\n";

/// Writes the kit of a point whose other artefacts are known.
///
/// # Errors
/// When no destination takes it.
pub async fn store(sink: &dyn ArtefactSink, point: &Manifest, places: &[String], versioned: bool) -> Result<()> {
    let way = WAYS.iter().find(|w| w.kind == point.kind && w.method == point.method);
    let text = restore_md(point, way, places, versioned)?;
    let mut files = vec![("RESTORE", "md", text)];
    if let Some((name, script)) = way.and_then(|w| w.script) {
        files.push((name, "sh", script.to_owned()));
        files.push((COMMON.0, "sh", COMMON.1.to_owned()));
    }
    for (name, ext, text) in files {
        let mut writer = sink.open(ArtefactSpec::data(name, ext).role(Role::Kit)).await?;
        if writer.send(text.into()).await.is_err() {
            return Err(writer.failure().await);
        }
        writer.finish().await?;
    }
    Ok(())
}

/// What lies below the prefix of a host, for whoever finds it.
pub fn readme(host: &str, environment: Option<&str>, versioned: bool) -> Result<String> {
    render(README, &json!({"host": host, "environment": environment, "versioned": versioned}), &[])
}

fn restore_md(point: &Manifest, way: Option<&Way>, places: &[String], versioned: bool) -> Result<String> {
    let data: Vec<&Artefact> = point.artefacts.iter().filter(|a| a.role != Role::Kit).collect();
    let encrypted = data.iter().any(|a| !a.recipients.is_empty());
    let oid =
        |a: &&&Artefact| a.plain_name().strip_suffix(".tar").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let tablespaces: Vec<&str> = data.iter().filter(oid).filter_map(|a| a.plain_name().strip_suffix(".tar")).collect();
    let dumps: Vec<String> = data.iter().filter(|a| a.plain_name().ends_with(".dump")).map(|a| opened(a)).collect();
    let major: String = point.server_version.iter().flat_map(|v| v.chars()).take_while(char::is_ascii_digit).collect();
    let mut options = String::new();
    if encrypted {
        options.push_str(" --identity \"$IDENTITY\"");
    }
    if point.kind == "elasticsearch" {
        options.push_str(" --url \"$URL\"");
    }
    tablespaces.iter().for_each(|oid| options.push_str(&format!(" --map {oid}=\"$TABLESPACE_{oid}\"")));
    let recipients: Vec<&str> = data.iter().take(1).flat_map(|a| &a.recipients).map(String::as_str).collect();
    let mut values = json!({
        "id": point.id, "kind": point.kind, "service": point.service, "host": point.host, "environment": point.environment,
        "what": way.map_or(point.kind.as_str(), |w| w.what), "started": point.started.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        "programs": programs(&data, way, encrypted), "facts": facts(point), "warnings": point.warnings, "places": places,
        "versioned": versioned, "encrypted": encrypted, "recipients": recipients.join("`, `"), "options": options,
        "script": way.and_then(|w| w.script).map(|(name, _)| format!("{name}.sh")),
        "archive": data.iter().any(|a| a.plain_name() == "data.tar"), "tablespaces": tablespaces, "dumps": dumps, "major": major,
        "artefacts": data.iter().map(|a| json!({"name": a.name, "meaning": meaning(a),
            "stored_bytes": a.stored_bytes, "plain_bytes": a.plain_bytes})).collect::<Vec<_>>(),
    });
    let by_hand = match way {
        Some(way) => render(way.by_hand, &values, &data)?,
        None => OTHER_KINDS.to_owned(),
    };
    values["by_hand"] = json!(by_hand.trim_end());
    render(RESTORE_MD, &values, &data)
}

fn programs(data: &[&Artefact], way: Option<&Way>, encrypted: bool) -> String {
    let mut names: Vec<&str> = Vec::new();
    for artefact in data {
        let name = match artefact.compression {
            Algorithm::Zstd => "zstd",
            Algorithm::Gzip => "gzip",
            Algorithm::None => continue,
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.extend(encrypted.then_some("age"));
    names.extend(way.map_or(&[][..], |w| w.programs));
    names.iter().map(|n| format!(", `{n}`")).collect()
}

fn facts(point: &Manifest) -> String {
    let counts: Vec<String> = point.counts.iter().map(|(key, n)| format!("{n} {key}")).collect();
    let mut text = String::new();
    if let Some(version) = &point.server_version {
        text.push_str(&format!("Server version: {version}. "));
    }
    if !counts.is_empty() {
        text.push_str(&format!("Captured: {}.", counts.join(", ")));
    }
    text.trim_end().to_owned()
}

fn meaning(artefact: &Artefact) -> &'static str {
    match artefact.role {
        Role::Data => "the data",
        Role::Config => "configuration from outside the data directory",
        Role::Inventory => "what is in it, one JSON object per line",
        Role::Kit => "how to restore",
    }
}

/// The command that prints the plain bytes of an artefact.
fn opened(artefact: &Artefact) -> String {
    let name = &artefact.name;
    let decompress = match artefact.compression {
        Algorithm::Zstd => "zstd --decompress --stdout",
        Algorithm::Gzip => "gzip --decompress --stdout",
        Algorithm::None => "cat",
    };
    match artefact.recipients.is_empty() {
        true => format!("{decompress} {name}"),
        false => format!("age --decrypt --identity \"$IDENTITY\" {name} | {decompress}"),
    }
}

/// Renders a template. `{{open "data.tar"}}` becomes the command that prints that artefact's plain bytes.
fn render(template: &str, values: &serde_json::Value, data: &[&Artefact]) -> Result<String> {
    let commands: Vec<(String, String)> = data.iter().map(|a| (a.plain_name().to_owned(), opened(a))).collect();
    let open = move |h: &Helper<'_>,
                     _: &Handlebars<'_>,
                     _: &handlebars::Context,
                     _: &mut RenderContext<'_, '_>,
                     out: &mut dyn Output|
          -> HelperResult {
        let name = h.param(0).and_then(|p| p.value().as_str()).unwrap_or_default();
        let command = commands.iter().find(|(n, _)| n == name).map_or("cat", |(_, command)| command);
        out.write(command)?;
        Ok(())
    };
    let mut engine = Handlebars::new();
    engine.register_escape_fn(no_escape);
    engine.register_helper("open", Box::new(open));
    engine.render_template(template, values).map_err(|e| {
        Error::new(ErrorKind::Internal, "a template of the restore kit could not be rendered").caused_by(e)
    })
}
