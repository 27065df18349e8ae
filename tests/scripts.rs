//! Restores without Backstay: the scripts and the kit of a point, in a clean directory, with the system's programs only.

#![allow(clippy::disallowed_methods, reason = "the scripts are run as people run them")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_s3::presigning::PresigningConfig;

use crate::blobdir::tree::{Copy, compare, full_tree};
use crate::common::postgres::{Server, bin, server_dir};
use crate::common::{Ran, backstay, rgw};

mod couchdb;
mod search;

/// Where neither Backstay nor anything of this repository is.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// A program as somebody runs it who has nothing but a standard system.
fn plain(dir: &Path, env: &[(&str, &str)], words: &[&str]) -> Ran {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(dir).env_clear().env("PATH", SYSTEM).env("HOME", dir);
    let out = command.envs(env.iter().copied()).output().unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn backup(dir: &Path, config: &str) {
    std::fs::write(dir.join("backstay.yml"), config).unwrap();
    let out = backstay(&["--config", dir.join("backstay.yml").to_str().unwrap(), "backup"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The only point in a directory of points.
fn point(dir: &Path) -> PathBuf {
    let mut points =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("manifest.json").exists());
    let point = points.next().unwrap();
    assert!(points.next().is_none());
    point
}

/// The commands of a text, as they stand in it.
fn commands(text: &str) -> String {
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n")
}

/// Everything of a point, away from where it was made.
fn carried_off(from: &Path, to: &Path) -> PathBuf {
    let point = to.join("point");
    assert!(Command::new("cp").arg("-r").arg(from).arg(&point).status().unwrap().success());
    point
}

fn blobs(more: &str) -> (tempfile::TempDir, Copy) {
    let dir = open_dir();
    let tree = dir.path().join("tree");
    if nix::unistd::geteuid().is_root() {
        full_tree(&tree);
    } else {
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("one"), "1").unwrap();
    }
    // GNU tar says that it ignores sockets, and so do we.
    let _ = std::fs::remove_file(tree.join("socket"));
    let before = Copy::of(&tree);
    let root = dir.path().display();
    let config = format!(
        "environment: test\nhost: h1\nstate_dir: {root}/state\nservices:\n  blobs:\n    blobdir: {{path: {root}/tree}}\n    \
         backup_dir: {root}/points\n    keep: {{daily: 7}}\n{more}"
    );
    backup(dir.path(), &config);
    (dir, before)
}

#[test]
fn the_kit_of_a_directory_restores_it_by_its_own_words() {
    let (dir, before) = blobs("");
    let clean = open_dir();
    let point = carried_off(&point(&dir.path().join("points")), clean.path());
    let names: Vec<String> =
        std::fs::read_dir(&point).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for name in ["RESTORE.md", "restore-blobdir.sh", "common.sh"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    // The host is lost, and with it everything that was there.
    std::fs::remove_dir_all(dir.path().join("tree")).unwrap();
    std::fs::remove_dir_all(dir.path().join("points")).unwrap();
    let text = std::fs::read_to_string(point.join("RESTORE.md")).unwrap();
    let ran = plain(&point, &[], &["bash", "-euxc", &commands(&text)]);
    assert_eq!(ran.code, 0, "{text}\n{ran:#?}");
    assert!(ran.stdout.contains("compared: "), "{ran:#?}");
    compare(&before, &Copy::of(&dir.path().join("tree")));
    compare(&before, &Copy::of(&point.join("restored")));
    assert!(text.contains("the directory `") && !text.contains("{{"), "{text}");
}

#[test]
fn an_encrypted_point_has_a_readable_kit_and_needs_the_key() {
    let dir = open_dir();
    let key = dir.path().join("key.txt");
    assert!(Command::new("age-keygen").arg("-o").arg(&key).output().unwrap().status.success());
    let text = std::fs::read_to_string(&key).unwrap();
    let recipient = text.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap().to_owned();
    let (made, before) = blobs(&format!("    encrypt_to: [{recipient}]\n"));
    let clean = open_dir();
    let point = carried_off(&point(&made.path().join("points")), clean.path());
    let words = std::fs::read_to_string(point.join("RESTORE.md")).unwrap();
    assert!(words.contains(&recipient) && !words.contains("AGE-SECRET-KEY"), "{words}");
    std::fs::remove_dir_all(made.path().join("tree")).unwrap();
    let target = clean.path().join("there");
    let without = ["bash", "restore-blobdir.sh", "restore", ".", "--to", target.to_str().unwrap(), "--yes"];
    let ran = plain(&point, &[], &without);
    assert_eq!(ran.code, 77, "{ran:#?}");
    assert!(
        ran.stderr.contains("error: the point is encrypted\nhint: give the private key with --identity FILE."),
        "{ran:#?}"
    );
    assert!(!target.exists());
    let ran = plain(&point, &[("IDENTITY", key.to_str().unwrap())], &["bash", "-euxc", &commands(&words)]);
    assert_eq!(ran.code, 0, "{words}\n{ran:#?}");
    compare(&before, &Copy::of(&made.path().join("tree")));
}

#[test]
fn a_script_refuses_what_would_destroy_and_says_what_it_would_do() {
    let (dir, before) = blobs("");
    let (points, target) = (dir.path().join("points"), dir.path().join("target"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-scripts/restore-blobdir.sh");
    let run = |more: &[&str]| {
        let words = [&["bash", script.to_str().unwrap()], more].concat();
        plain(dir.path(), &[], &words)
    };
    let source = points.to_str().unwrap();
    let to = ["--to", target.to_str().unwrap()];
    let id = point(&points).file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(run(&["list", source]).ok(), format!("{id}\n"));
    let refused = run(&["restore", source, to[0], to[1]]);
    assert_eq!(
        (refused.code, refused.stderr.contains("nothing is restored without --yes")),
        (73, true),
        "{refused:#?}"
    );
    let dry = run(&["restore", source, "latest", to[0], to[1], "--dry-run"]).ok();
    assert!(dry.contains("dry run:  nothing was changed") && !target.exists(), "{dry}");
    run(&["restore", source, &id, to[0], to[1], "--yes"]).ok();
    compare(&before, &Copy::of(&target));
    std::fs::write(target.join("mine"), "mine").unwrap();
    let refused = run(&["restore", source, to[0], to[1], "--yes"]);
    assert_eq!(refused.code, 73, "{refused:#?}");
    assert!(refused.stderr.contains("is not empty"), "{refused:#?}");
    let said = run(&["restore", source, to[0], to[1], "--yes", "--replace"]).ok();
    compare(&before, &Copy::of(&target));
    let old = said.lines().find_map(|l| l.strip_prefix("the old data lies in ")).unwrap();
    assert_eq!(std::fs::read_to_string(Path::new(old).join("mine")).unwrap(), "mine");
    assert_eq!(run(&["restore", source, "no_such_point", to[0], to[1], "--yes"]).code, 66);
    assert_eq!(run(&["restore", source, "../escape", to[0], to[1], "--yes"]).code, 64);
    assert_eq!(run(&["restore", source, "--nonsense"]).code, 64);
    damaged_points_are_refused(&point(&points), &target, &run);
}

fn damaged_points_are_refused(point: &Path, target: &Path, run: &dyn Fn(&[&str]) -> Ran) {
    let before = Copy::of(target);
    for name in ["data.tar.zst", "inventory.jsonl.zst", "SHA256SUMS", "manifest.json", "RESTORE.md"] {
        let path = point.join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        for harm in [&bad[..], &good[..good.len() - 1]] {
            std::fs::write(&path, harm).unwrap();
            let words = ["restore", point.to_str().unwrap(), "--to", target.to_str().unwrap(), "--yes", "--replace"];
            let ran = run(&words);
            assert_eq!(ran.code, 65, "{name}: {ran:#?}");
            compare(&before, &Copy::of(target));
        }
        std::fs::write(&path, &good).unwrap();
    }
}

/// Databases with contents, and one line that says what is in them.
fn filled() -> Server {
    let server = Server::start();
    server.sql("postgres", "create role app login");
    server.sql("postgres", "create database shop owner app");
    server.sql("postgres", "create database \"o'dd = \"\"name\"\"\"");
    server.sql("postgres", "alter database shop set work_mem = '7MB'");
    for database in ["shop", "o'dd = \"name\""] {
        server.sql(
            database,
            "create table t (id int primary key, x text); insert into t select n, md5(n::text) from generate_series(1, 500) n;
             create schema \"S\"; create table \"S\".\"we ird\" (x text); insert into \"S\".\"we ird\" values ('a'), (null)",
        );
    }
    server
}

fn content(server: &Server, database: &str) -> String {
    server.sql(database, "select md5(string_agg(t::text, ',' order by id)), (select count(*) from \"S\".\"we ird\"), current_setting('work_mem') from t")
}

fn postgres_point(server: &Server, method: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = open_dir();
    let bin = bin();
    let (root, socket) = (dir.path().display(), server.dir.path().display());
    let config = format!(
        "host: h1\nstate_dir: {root}/state\nservices:\n  pg:\n    postgres: {{method: {method}, host: {socket}, port: 5432, \
         username: postgres, bin_dir: {bin}, staging_dir: {root}}}\n    backup_dir: {root}/points\n    keep: {{daily: 7}}\n"
    );
    let config = if method == "plain" { config } else { config.replace(&format!(", staging_dir: {root}"), "") };
    backup(dir.path(), &config);
    let made = point(&dir.path().join("points"));
    (dir, made)
}

#[test]
fn a_cluster_comes_back_by_the_kit_and_starts() {
    let server = filled();
    let dir = server_dir(&server.dir.path().join("fast"));
    server.sql("postgres", &format!("create tablespace fast location '{}'", dir.display()));
    server.sql("shop", "create table far (x int) tablespace fast; insert into far select generate_series(1, 99)");
    let before = (content(&server, "shop"), content(&server, "o'dd = \"name\""));
    let (_made, point) = postgres_point(&server, "plain");
    let clean = open_dir();
    let point = carried_off(&point, clean.path());
    server.down();
    let oid = std::fs::read_dir(&point).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let oid = oid.filter_map(|n| n.split('.').next().unwrap().parse::<u32>().ok()).next().unwrap();
    let text = std::fs::read_to_string(point.join("RESTORE.md")).unwrap();
    let tablespace = server_dir(&server.dir.path().join("new fast"));
    std::fs::remove_dir(&tablespace).unwrap();
    let script = commands(text.split("## 4.").next().unwrap());
    // The old cluster is still where it was: as the text says, only --replace moves it aside.
    let env = [(format!("TABLESPACE_{oid}"), tablespace.display().to_string())];
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let ran = plain(&point, &env, &["bash", "-euxc", &script]);
    assert_eq!(ran.code, 73, "{ran:#?}");
    let ran = plain(
        &point,
        &env,
        &["bash", "-euxc", &script.replace("--yes", "--yes --replace").replace("--dry-run", "--dry-run --replace")],
    );
    assert_eq!(ran.code, 0, "{text}\n{ran:#?}");
    assert!(ran.stdout.contains("compared: every file with the copy's manifest"), "{ran:#?}");
    server.up();
    assert_eq!((content(&server, "shop"), content(&server, "o'dd = \"name\"")), before);
    assert_eq!(server.sql("shop", "select count(*) from far"), "99");
    assert_eq!(
        server.sql("postgres", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'"),
        tablespace.display().to_string()
    );
    let running = plain(
        &point,
        &env,
        &[
            "bash",
            "restore-postgres.sh",
            "restore",
            ".",
            "--map",
            &format!("{oid}={}", clean.path().join("x").display()),
            "--replace",
            "--yes",
        ],
    );
    assert!(running.code == 73 && running.stderr.contains("a server runs in "), "{running:#?}");
}

#[test]
fn dumps_come_back_by_the_kit_and_are_counted() {
    let server = filled();
    for method in ["dump", "databases"] {
        let (_made, point) = postgres_point(&server, method);
        let clean = open_dir();
        let point = carried_off(&point, clean.path());
        let text = std::fs::read_to_string(point.join("RESTORE.md")).unwrap();
        let script = commands(text.split("## 4.").next().unwrap());
        let fresh = Server::start();
        let socket = fresh.dir.path().display().to_string();
        let env = [("PGHOST", socket.as_str()), ("PGUSER", "postgres")];
        let ran = plain(&point, &env, &["bash", "-euxc", &script]);
        assert_eq!(ran.code, 0, "{method}: {text}\n{ran:#?}");
        assert!(ran.stdout.contains("compared: the rows of 4 tables"), "{method}: {ran:#?}");
        for database in ["shop", "o'dd = \"name\""] {
            assert_eq!(content(&fresh, database), content(&server, database), "{method} {database}");
        }
        let again = plain(&point, &env, &["bash", "-euxc", &script]);
        assert_eq!(again.code, 73, "{method}: {again:#?}");
        if method == "databases" {
            let words =
                ["bash", "restore-postgres.sh", "restore", ".", "--database", "shop", "--as", "shop \"2\"", "--yes"];
            plain(&point, &env, &words).ok();
            assert_eq!(fresh.sql("shop \"2\"", "select count(*) from t"), "500");
        } else {
            // By hand, as the text says, into another empty cluster.
            let other = Server::start();
            let socket = other.dir.path().display().to_string();
            let env = [("PGHOST", socket.as_str()), ("PGUSER", "postgres")];
            let by_hand = commands(text.split("## 4.").nth(1).unwrap());
            let ran = plain(&point, &env, &["bash", "-euxc", &by_hand]);
            assert_eq!(ran.code, 0, "{by_hand}\n{ran:#?}");
            assert_eq!(content(&other, "shop"), content(&server, "shop"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_bucket_alone() {
    let bucket = format!("scripts-{}", std::process::id());
    rgw::make_bucket(&bucket, false).await;
    rgw::make_bucket(&format!("{bucket}-v"), true).await;
    tokio::task::spawn_blocking(move || from_bucket(&bucket)).await.unwrap();
}

/// The configuration of a service whose points lie in a bucket only, and what its tree looks like.
fn in_bucket(dir: &Path, bucket: &str) -> (String, Copy) {
    std::fs::create_dir(dir.join("tree")).unwrap();
    for n in 0..5 {
        std::fs::write(dir.join(format!("tree/{n}")), vec![n; 200_000]).unwrap();
    }
    let keys = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
    std::fs::write(dir.join("keys"), keys).unwrap();
    std::fs::set_permissions(dir.join("keys"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let root = dir.display();
    let config = format!(
        "environment: prod\nhost: h1\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    s3: {{bucket: {bucket}, endpoint: \"{}\", \
         credentials: {{file: {root}/keys}}}}\nservices:\n  blobs:\n    blobdir: {{path: {root}/tree}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\n",
        rgw::endpoint()
    );
    let before = Copy::of(&dir.join("tree"));
    backup(dir, &config);
    std::fs::remove_dir_all(dir.join("tree")).unwrap();
    (config, before)
}

fn from_bucket(bucket: &str) {
    let (endpoint, dir, clean) = (rgw::endpoint(), open_dir(), open_dir());
    let (config, before) = in_bucket(dir.path(), bucket);
    let env =
        [("AWS_ACCESS_KEY_ID", rgw::ACCESS), ("AWS_SECRET_ACCESS_KEY", rgw::SECRET), ("AWS_ENDPOINT_URL", endpoint)];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-scripts/restore-blobdir.sh");
    let script = script.to_str().unwrap();
    let source = format!("s3://{bucket}/prod/h1/blobs");
    for (n, (env, with)) in readers(clean.path(), &env).iter().enumerate() {
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let listed = plain(clean.path(), &env, &[&["bash", script, "list", &source], &with[..]].concat()).ok();
        assert!(listed.starts_with("blobs_prod_daily_") && listed.lines().count() == 1, "{with:?}: {listed}");
        if env.is_empty() {
            continue;
        }
        let target = clean.path().join(format!("back{n}"));
        let words = ["bash", script, "restore", &source, "--to", target.to_str().unwrap(), "--yes"];
        plain(clean.path(), &env, &[&words[..], with].concat()).ok();
        compare(&before, &Copy::of(&target));
    }
    by_urls(bucket, clean.path(), script, &before);
    let wrong = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_ENDPOINT_URL", endpoint)];
    let denied = plain(clean.path(), &wrong, &["bash", script, "list", &source]);
    assert_eq!(denied.code, 69, "{denied:#?}");
    versioned(dir.path(), clean.path(), &env, &config);
}

/// Environment, and words of the command line.
type Reader = (Vec<(String, String)>, &'static [&'static str]);

/// Every way to read a bucket.
fn readers(home: &Path, keys: &[(&str, &str)]) -> Vec<Reader> {
    let owned = |env: &[(&str, &str)]| env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let mut ways: Vec<Reader> = vec![(owned(keys), &["--with", "curl"])];
    let aws = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/aws");
    if aws.is_file() {
        std::fs::create_dir_all(home.join("bin")).unwrap();
        std::os::unix::fs::symlink(aws, home.join("bin/aws")).unwrap();
        // It is there, so it is what reads.
        let path = format!("{}:{SYSTEM}", home.join("bin").display());
        ways.push((owned(&[keys, &[("PATH", &path)]].concat()), &[]));
    } else {
        crate::common::skip("restore scripts with aws: install it with `tests/run venv`");
    }
    if Path::new("/usr/bin/s3cmd").is_file() {
        ways.push((owned(keys), &["--with", "s3cmd"]));
        // No keys in the environment: its own configuration has them, and the address.
        let host = rgw::endpoint().trim_start_matches("http://");
        let text = format!(
            "[default]\naccess_key = {}\nsecret_key = {}\nhost_base = {host}\nhost_bucket = {host}\nuse_https = False\n",
            rgw::ACCESS,
            rgw::SECRET
        );
        std::fs::write(home.join(".s3cfg"), text).unwrap();
        ways.push((Vec::new(), &[]));
    } else {
        crate::common::skip("restore scripts with s3cmd: install the packages with `tests/run packages`");
    }
    ways
}

/// Without any key: somebody who has one signs an URL for each object.
fn by_urls(bucket: &str, dir: &Path, script: &str, before: &Copy) {
    let handle = tokio::runtime::Handle::current();
    let urls = handle.block_on(async {
        let client = rgw::client();
        let found = client.list_objects_v2().bucket(bucket).prefix("prod/h1/blobs/").send().await.unwrap();
        let hour = PresigningConfig::expires_in(std::time::Duration::from_secs(3600)).unwrap();
        let mut urls = Vec::new();
        for object in found.contents() {
            let request = client.get_object().bucket(bucket).key(object.key().unwrap()).presigned(hour.clone());
            urls.push(request.await.unwrap().uri().to_owned());
        }
        urls
    });
    let (file, target) = (dir.join("urls"), dir.join("by-urls"));
    let words = ["bash", script, "restore", file.to_str().unwrap(), "--to", target.to_str().unwrap(), "--yes"];
    std::fs::write(&file, urls.join("\n")).unwrap();
    plain(dir, &[], &words).ok();
    compare(before, &Copy::of(&target));
    let without = |name: &str| urls.iter().filter(|u| !u.contains(name)).cloned().collect::<Vec<_>>().join("\n");
    let expired = urls.join("\n").replacen("Signature=", "Signature=0", 1);
    let not_good =
        [(expired, 69), (without("/data.tar.zst?"), 65), (without("/manifest.json?"), 66), ("no URL".to_owned(), 64)];
    for (text, code) in not_good {
        std::fs::write(&file, &text).unwrap();
        let ran = plain(dir, &[], &[&words[..], &["--replace"]].concat());
        assert_eq!(ran.code, code, "{ran:#?}");
    }
    compare(before, &Copy::of(&target));
}

/// Fixed keys: the older of two points comes back, not the newer one that has the same keys.
fn versioned(dir: &Path, clean: &Path, env: &[(&str, &str)], config: &str) {
    let bucket = config.split("bucket: ").nth(1).unwrap().split(',').next().unwrap();
    let config = config.replace(bucket, &format!("{bucket}-v")).replace("endpoint:", "key_style: versioned, endpoint:");
    std::fs::create_dir(dir.join("tree")).unwrap();
    std::fs::write(dir.join("tree/file"), "first").unwrap();
    backup(dir, &config);
    std::fs::write(dir.join("tree/file"), "second").unwrap();
    let again =
        ["--config", dir.join("backstay.yml").to_str().unwrap(), "backup", "--cadence", "daily"].map(str::to_owned);
    // The first point of the same day would be pruned, were it not another agent's.
    std::fs::write(dir.join("backstay.yml"), format!("agent_id: another\n{config}")).unwrap();
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    let out = backstay(&again).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-scripts/restore-blobdir.sh");
    let source = format!("s3://{bucket}-v/prod/blobs_daily_h1");
    let listed = plain(clean, env, &["bash", script.to_str().unwrap(), "list", &source]).ok();
    let target = clean.join("versioned");
    for line in listed.lines() {
        let point = line.split('\t').next().unwrap();
        let words = [
            "bash",
            script.to_str().unwrap(),
            "restore",
            &source,
            point,
            "--to",
            target.to_str().unwrap(),
            "--yes",
            "--replace",
        ];
        plain(clean, env, &words).ok();
        let text = std::fs::read_to_string(target.join("file")).unwrap();
        assert_eq!(text, if line == listed.lines().last().unwrap() { "second" } else { "first" }, "{listed}");
    }
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let s3cmd = plain(clean, env, &["bash", script.to_str().unwrap(), "list", &source, "--with", "s3cmd"]);
    assert!(s3cmd.code != 0 && !s3cmd.stdout.contains("fetching"), "it does not know versions: {s3cmd:#?}");
    let latest =
        ["bash", script.to_str().unwrap(), "restore", &source, "--to", target.to_str().unwrap(), "--yes", "--replace"];
    plain(clean, env, &latest).ok();
    assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "second");
}

#[test]
fn every_script_passes_shellcheck_and_no_script_asks() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-scripts");
    let scripts: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(scripts.len() >= 5);
    let out = Command::new("shellcheck").arg("-x").args(&scripts).current_dir(dir.parent().unwrap()).output();
    match out {
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout)),
        Err(_) => crate::common::skip("every_script_passes_shellcheck: shellcheck is missing"),
    }
    for script in scripts {
        let text = std::fs::read_to_string(&script).unwrap();
        assert!(!text.contains("read -p") && !text.contains("/dev/tty"), "{}", script.display());
    }
}
