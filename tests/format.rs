//! The commands of `docs/format.md`, word for word, in real restore points, without Backstay.

#![allow(clippy::disallowed_methods, reason = "the commands are run as people run them")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::postgres::{Server, bin, server_dir};
use crate::common::{run, write};

/// The shell block that stands below a heading.
fn block(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, below) = text.split_once(&format!("# {heading}\n")).expect(heading);
    let section = below.split("\n## ").next().unwrap().split("\n### ").next().unwrap();
    let (_, code) = section.split_once("\n```sh\n").expect(heading);
    code.split_once("\n```").expect(heading).0.to_owned()
}

/// Where commands are run: in a copy of a point, against a server or none, as its user or not.
struct Shell<'a> {
    folder: &'a Path,
    server: Option<&'a Server>,
}

impl Shell<'_> {
    fn output(&self, script: &str) -> Output {
        let mut command = match self.server {
            Some(_) if nix::unistd::geteuid().is_root() => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "bash"]);
                command
            }
            _ => Command::new("bash"),
        };
        command.args(["-euo", "pipefail", "-c", script]).current_dir(self.folder);
        command.env("PATH", format!("{}:{}", bin(), std::env::var("PATH").unwrap()));
        if let Some(server) = self.server {
            command.env("PGHOST", server.dir.path()).env("PGUSER", "postgres").env("PGPORT", "5432");
        }
        command.output().unwrap()
    }
    /// Runs commands that must succeed; what they print.
    fn run(&self, script: &str) -> String {
        let out = self.output(script);
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}\n{said}{wrong}");
        said.into_owned()
    }
    /// The record and the digests are right, by the document's own commands, and damage to either is noticed by them.
    fn check(&self) {
        let (digest, sums) = (block("The manifest"), block("Step 1: fetch and check"));
        self.run(&digest);
        let fetched = self.run(&block("Where points lie"));
        let names: Vec<&str> = fetched.lines().map(|l| l.split('\t').next().unwrap()).collect();
        let there = names.iter().all(|name| self.folder.join(name).is_file());
        assert!(there && names.last() == Some(&"SHA256SUMS") && names.len() > 2, "{fetched}");
        let said = self.run(&sums);
        assert!(said.lines().count() > 1 && said.lines().all(|l| l.ends_with(": OK")), "{said}");
        self.run("mkdir damaged && cp * damaged/ 2>/dev/null || true");
        let damaged = Shell { folder: &self.folder.join("damaged"), server: self.server };
        damaged.run("sed -i 's/\"service\": \"/&x/' manifest.json && for f in *.zst* *.gz; do [ -e $f ] || continue; printf x >>$f; done");
        assert!(!damaged.output(&digest).status.success());
        assert!(!damaged.output(&sums).status.success());
    }
}

/// Makes a backup, and copies the newest point of `service` from its own directory to `to`.
fn point(config: &str, dir: &Path, service: &str, to: &str) -> PathBuf {
    run(&["--config", config, "backup", service]).ok();
    let listed = run(&["--config", config, "--json", "list", service, "--from", "local"]).ok();
    let line: serde_json::Value = serde_json::from_str(listed.lines().last().unwrap()).unwrap();
    let from = dir.join(service).join(line["id"].as_str().unwrap());
    let to = dir.join(to);
    let done = Command::new("cp").arg("-r").arg(from).arg(&to).status().unwrap();
    assert!(done.success());
    to
}

fn line_with(text: &str, comment: &str) -> String {
    text.lines().find(|l| l.ends_with(comment)).expect(comment).to_owned()
}

#[test]
fn directories_come_back_by_hand_encrypted_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in ["a/one", "a/two", "b/ü and space"] {
        write(root, &format!("blobs/{name}"), &name.repeat(5000));
    }
    std::fs::hard_link(root.join("blobs/a/one"), root.join("blobs/b/linked")).unwrap();
    std::os::unix::fs::symlink("../a/one", root.join("blobs/b/pointer")).unwrap();
    let at_root = Shell { folder: root, server: None };
    let recipient = at_root.run("age-keygen --output key.txt 2>/dev/null && age-keygen -y key.txt");
    let service = |name: &str, more: &str| {
        format!(
            "  {name}:\n    blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/{name}\n    keep: {{daily: 7}}\n{more}",
            root = root.display()
        )
    };
    let text = format!(
        "state_dir: {}/state\nservices:\n{}{}",
        root.display(),
        service("open", "") + &service("zipped", "    compression: {algorithm: gzip}\n"),
        service("sealed", &format!("    encrypt_to: [{}]\n", recipient.trim()))
    );
    let config = write(root, "backstay.yml", &text);
    let same = |folder: &Path| at_root.run(&format!("diff --recursive --no-dereference blobs {}", folder.display()));

    let open = point(&config, root, "open", "copy-open");
    let shell = Shell { folder: &open, server: None };
    shell.check();
    shell.run(&block("blobdir"));
    same(&open.join("restored"));
    let [one, linked] = ["a/one", "b/linked"].map(|n| std::fs::metadata(open.join("restored").join(n)).unwrap());
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&one), std::os::unix::fs::MetadataExt::ino(&linked));
    std::fs::create_dir(open.join("step2")).unwrap();
    let step = block("Step 2: open an artefact");
    shell.run(&format!("cp data.tar.zst step2/; cd step2\n{}\nrm data.tar.zst", line_with(&step, "# not encrypted")));
    same(&open.join("step2"));

    let zipped = point(&config, root, "zipped", "copy-zipped");
    let shell = Shell { folder: &zipped, server: None };
    shell.check();
    shell.run(&block("blobdir").replace("zstd", "gzip").replace(".zst", ".gz"));
    same(&zipped.join("restored"));

    let sealed = point(&config, root, "sealed", "copy-sealed");
    let shell = Shell { folder: &sealed, server: None };
    shell.check();
    std::fs::create_dir(sealed.join("step2")).unwrap();
    shell.run(&format!(
        "cp data.tar.zst.age ../key.txt step2/; cd step2\n{}\nrm key.txt data.tar.zst.age",
        line_with(&step, "# encrypted")
    ));
    same(&sealed.join("step2"));
}

const SUM: &str = "select count(*) || ' ' || md5(string_agg(o::text, ',' order by id)) from orders o";

/// A server with a role, a database and rows, and a configuration of one service for each method.
fn filled() -> (Server, String) {
    let server = Server::start();
    server.sql("postgres", "create role clerk login");
    server.sql("postgres", "create database shop owner clerk");
    server.sql("shop", "create table orders as select n as id, md5(n::text) as code from generate_series(1, 5000) n");
    server.sql("shop", "alter table orders owner to clerk");
    let dir = server_dir(&server.dir.path().join("backups"));
    let mut text = format!("state_dir: {}/state\nservices:\n", dir.display());
    for method in ["plain", "dump", "databases"] {
        text.push_str(&format!(
            "  {method}:\n    postgres: {{method: {method}, host: {:?}, port: 5432, username: postgres, bin_dir: {:?}}}\n    \
             backup_dir: {}/{method}\n    keep: {{daily: 7}}\n",
            server.dir.path(),
            bin(),
            dir.display()
        ));
    }
    let config = write(&dir, "backstay.yml", &text);
    (server, config)
}

/// A copy of a point that belongs to the server's user.
fn own_copy(server: &Server, config: &str, service: &str) -> PathBuf {
    let folder = point(config, &server.dir.path().join("backups"), service, &format!("copy-{service}"));
    if nix::unistd::geteuid().is_root() {
        let done = Command::new("chown").args(["-R", "postgres:postgres"]).arg(&folder).status().unwrap();
        assert!(done.success());
    }
    folder
}

#[test]
fn a_whole_cluster_comes_back_by_hand() {
    let (server, config) = filled();
    let folder = own_copy(&server, &config, "plain");
    let shell = Shell { folder: &folder, server: Some(&server) };
    shell.check();
    let said = shell.run(&block("postgres, method `plain`"));
    assert!(said.contains("backup successfully verified"), "{said}");
    let restored = started(&folder);
    assert_eq!(restored.sql("shop", SUM), server.sql("shop", SUM));
    restored.down();
}

/// Starts a restored cluster.
fn started(folder: &Path) -> Server {
    let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
    server_dir(dir.path());
    let restored = Server { data: folder.join("pgdata"), dir };
    restored.settle(restored.dir.path());
    restored.up();
    restored
}

#[test]
fn a_cluster_with_tablespaces_comes_back_by_hand_elsewhere() {
    let (server, config) = filled();
    let old = ["fast", "slow disk"].map(|name| server_dir(&server.dir.path().join(name)));
    for (name, dir) in ["fast", "slow"].iter().zip(&old) {
        server.sql("postgres", &format!("create tablespace {name} location '{}'", dir.display()));
    }
    server.sql("shop", "alter table orders set tablespace slow");
    server.sql("postgres", "create database other tablespace fast");
    let folder = own_copy(&server, &config, "plain");
    let sum = server.sql("shop", SUM);
    server.down();
    old.iter().for_each(|dir| std::fs::remove_dir_all(dir).unwrap());
    let shell = Shell { folder: &folder, server: Some(&server) };
    shell.check();
    let said = shell.run(&block("postgres, method `plain`, with tablespaces"));
    assert!(said.contains("backup successfully verified"), "{said}");
    let restored = started(&folder);
    assert_eq!(restored.sql("shop", SUM), sum);
    let place = restored.sql("shop", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'slow'");
    assert_eq!(place, format!("{}/tablespaces{}", folder.display(), old[1].display()));
    restored.down();
}

#[test]
fn a_dump_comes_back_by_hand_and_one_that_does_not_is_told() {
    let (server, config) = filled();
    let folder = own_copy(&server, &config, "dump");
    let empty = Server::start();
    let shell = Shell { folder: &folder, server: Some(&empty) };
    shell.check();
    let commands = block("postgres, method `dump`");
    let said = shell.run(&commands);
    assert!(!said.contains("did not restore cleanly"), "{said}{}", shell.run("cat errors.txt"));
    assert_eq!(empty.sql("shop", SUM), server.sql("shop", SUM));
    assert_eq!(empty.sql("postgres", "select rolcanlogin from pg_roles where rolname = 'clerk'"), "t");
    // The cluster is not empty any more.
    assert!(shell.run(&commands).contains("this dump did not restore cleanly"));
}

#[test]
fn one_database_comes_back_by_hand() {
    let (server, config) = filled();
    let folder = own_copy(&server, &config, "databases");
    let empty = Server::start();
    let shell = Shell { folder: &folder, server: Some(&empty) };
    shell.check();
    let said = shell.run(&block("postgres, method `databases`"));
    assert!(said.lines().any(|l| l == "shop.dump\tshop"), "{said}");
    assert_eq!(empty.sql("shop_restored", SUM), server.sql("shop", SUM));
    assert_eq!(empty.sql("shop_restored", "select tableowner from pg_tables where tablename = 'orders'"), "clerk");
}
