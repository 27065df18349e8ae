//! `restore-couchdb.sh`: files of real nodes, and, where there is one, a real node of another name.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use reqwest::Method;

use super::{Ran, backstay, carried_off, commands, open_dir, plain, point};
use crate::couchdb::data::{LOW, shard, unpack};
use crate::couchdb::node::{Node, installation};

/// Every file below a directory, with its content.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// A point of a data directory; the run may end with a warning.
fn point_of(dir: &Path, data: &Path) -> PathBuf {
    let (root, data) = (dir.display(), data.display());
    let config = format!(
        "environment: test\nhost: h1\nstate_dir: {root}/state\nservices:\n  couch:\n    couchdb: {{data_dir: {data}}}\n    \
         backup_dir: {root}/points\n    keep: {{daily: 7}}\n"
    );
    fs::write(dir.join("backstay.yml"), config).unwrap();
    let out = backstay(&["--config", dir.join("backstay.yml").to_str().unwrap(), "backup"]).output().unwrap();
    assert!(dir.join("points").exists(), "{}", String::from_utf8_lossy(&out.stderr));
    point(&dir.join("points"))
}

fn script(dir: &Path, more: &[&str]) -> Ran {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-scripts/restore-couchdb.sh");
    plain(dir, &[], &[&["bash", script.to_str().unwrap()], more].concat())
}

#[test]
fn the_files_of_a_node_come_back_by_the_kit_and_never_its_cluster() {
    let dir = open_dir();
    let data = unpack(dir.path());
    let mut before = files(&data);
    let made = point_of(dir.path(), &data);
    let clean = open_dir();
    let point = carried_off(&made, clean.path());
    let text = fs::read_to_string(point.join("RESTORE.md")).unwrap();
    for said in ["the data directory of a CouchDB node", "--finish http://", "`curl`"] {
        assert!(text.contains(said) && !text.contains("{{"), "{said}: {text}");
    }
    let over = plain(&point, &[], &["bash", "-euxc", &commands(&text)]);
    assert!(over.code == 73 && over.stderr.contains("is not empty"), "{over:#?}");
    assert_eq!(files(&data), before);

    fs::remove_dir_all(&data).unwrap();
    let ran = plain(&point, &[], &["bash", "-euxc", &commands(&text)]);
    assert_eq!(ran.code, 0, "{text}\n{ran:#?}");
    assert!(ran.stdout.contains("compared: 22 files with the archive and the inventory"), "{ran:#?}");
    assert!(before.remove(Path::new("_nodes.couch")).is_some());
    assert_eq!(files(&data), before);
    assert_eq!(files(&point.join("couchdb-data")), before, "by hand");
}

#[test]
fn files_of_a_node_that_runs_stay_and_old_ones_are_moved_aside() {
    let dir = open_dir();
    let data = unpack(dir.path());
    let point = point_of(dir.path(), &data);
    let target = dir.path().join("target");
    let words = ["restore", point.to_str().unwrap(), "--to", target.to_str().unwrap()];
    let with = |more: &[&str]| script(dir.path(), &[&words[..], more].concat());
    assert_eq!(with(&[]).code, 73);
    let dry = with(&["--dry-run"]).ok();
    assert!(dry.contains("dry run:  nothing was changed") && !target.exists(), "{dry}");
    let said = with(&["--yes", "--no-replicator"]).ok();
    assert!(said.contains("left out: _replicator\n") && said.contains("--no-replicator --finish URL --yes"), "{said}");
    assert!(!files(&target).keys().any(|path| path.to_str().unwrap().contains("_replicator")));
    assert!(target.join(shard(LOW, "plain")).exists());

    fs::write(target.join("_nodes.couch"), "mine").unwrap();
    let open = fs::File::open(target.join("_dbs.couch")).unwrap();
    let refused = with(&["--yes", "--replace"]);
    assert!(refused.code == 73 && refused.stderr.contains("error: a node runs in "), "{refused:#?}");
    drop(open);
    let said = with(&["--yes", "--replace"]).ok();
    let old = said.lines().find_map(|l| l.strip_prefix("the old data lies in ")).unwrap();
    assert_eq!(fs::read_to_string(Path::new(old).join("_nodes.couch")).unwrap(), "mine");
    assert!(!target.join("_nodes.couch").exists());

    let archive = point.join("data.tar.zst");
    let mut bad = fs::read(&archive).unwrap();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&archive, bad).unwrap();
    let before = files(&target);
    let damaged = with(&["--yes", "--replace"]);
    assert!(damaged.code == 65 && damaged.stderr.contains("an artefact of "), "{damaged:#?}");
    assert_eq!(files(&target), before);
}

#[test]
fn a_database_that_the_point_does_not_hold_whole_stays_out() {
    let dir = open_dir();
    let data = unpack(dir.path());
    fs::write(data.join(shard(LOW, "user/foo")), "").unwrap();
    let point = point_of(dir.path(), &data);
    let target = dir.path().join("target");
    let ran = script(dir.path(), &["restore", point.to_str().unwrap(), "--to", target.to_str().unwrap(), "--yes"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("warning: this point is suspect: "), "{ran:#?}");
    assert!(ran.stdout.contains("left out: user/foo, the point does not hold it whole"), "{ran:#?}");
    let there = files(&target);
    assert!(there.contains_key(Path::new(&shard(LOW, "plain"))));
    assert!(!there.keys().any(|path| path.to_str().unwrap().contains("user/foo.")), "nor its views");
}

#[test]
fn a_login_is_never_an_argument() {
    let dir = open_dir();
    let data = unpack(dir.path());
    let point = point_of(dir.path(), &data);
    let words = ["restore", point.to_str().unwrap(), "--yes", "--finish", "http://admin:secret@127.0.0.1:1"];
    let refused = script(dir.path(), &words);
    assert!(refused.code == 64 && refused.stderr.contains("put the login into a file for --login."), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_name_has_everything_after_the_second_step() {
    let Some(couchdb) = installation() else { return };
    let dir = open_dir();
    let old = Node::new(&couchdb, &dir.path().join("old"), "old");
    old.start().await;
    old.fill().await;
    let mut before = BTreeMap::new();
    for db in old.databases().await {
        before.insert(db.clone(), old.everything(&db).await);
    }
    let data = old.data();
    drop(old);
    let point = point_of(dir.path(), &data);
    let new = Node::new(&couchdb, &dir.path().join("new"), "new");
    let to = new.data();
    let words = ["restore", point.to_str().unwrap(), "--to", to.to_str().unwrap(), "--yes"];
    script(dir.path(), &words).ok();
    new.start().await;

    let login = dir.path().join("login");
    fs::write(&login, "user = \"admin:secret\"\n").unwrap();
    fs::set_permissions(&login, fs::Permissions::from_mode(0o600)).unwrap();
    let finish = |more: &[&str]| script(dir.path(), &[&words[..], &["--finish", &new.url], more].concat());
    let denied = finish(&[]);
    assert!(denied.code == 69 && denied.stderr.contains("hint: give a login"), "{denied:#?}");
    let login = ["--login", login.to_str().unwrap()];
    let dry = finish(&[&login[..], &["--dry-run"]].concat()).ok();
    assert!(dry.contains("would rewrite the shard map of user/foo\n"), "{dry}");
    assert_ne!(new.ask(Method::GET, "/plain", None).await.0, 200, "nothing was changed");

    let said = finish(&login).ok();
    assert!(said.contains(&format!("rewrote:  {} shard maps\n", before.len())), "{said}");
    assert!(said.contains(&format!("compared: {} databases", before.len())), "{said}");
    assert_eq!(new.databases().await, before.keys().cloned().collect::<Vec<_>>());
    for (db, wanted) in &before {
        assert!(new.everything(db).await == *wanted, "{db}");
    }
    assert!(finish(&login).ok().contains("rewrote:  0 shard maps\n"));
    let used = finish(&[&login[..], &["--no-replicator"]].concat());
    let why = "_replicator: it does not come back, but its files hold documents: it was left alone";
    assert!(used.code == 65 && used.stderr.contains(why), "{used:#?}");
    without_jobs(&couchdb, dir.path(), &point, login).await;

    assert_eq!(new.ask(Method::DELETE, "/plain", None).await.0, 200);
    let fewer = new.get("/a%2Bb%24c_d/doc-0001").await;
    let path = format!("/a%2Bb%24c_d/doc-0001?rev={}", fewer["_rev"].as_str().unwrap());
    assert_eq!(new.ask(Method::DELETE, &path, None).await.0, 200);
    let short = finish(&login);
    assert_eq!(short.code, 65, "{short:#?}");
    assert!(short.stderr.contains("error: 2 databases are not what was captured: "), "{short:#?}");
    assert!(short.stderr.contains("plain: the node has no shard map of it"), "{short:#?}");
    assert!(short.stderr.contains("a+b$c_d: shards/"), "{short:#?}");
}

/// A copy beside the living original: the map of what stays out goes, before anybody reads it.
async fn without_jobs(couchdb: &Path, dir: &Path, point: &Path, login: [&str; 2]) {
    let copy = Node::new(couchdb, &dir.join("copy"), "copy");
    let to = copy.data();
    let words = ["restore", point.to_str().unwrap(), "--to", to.to_str().unwrap(), "--yes", "--no-replicator"];
    script(dir, &words).ok();
    copy.start().await;
    let said = script(dir, &[&words[..], &["--finish", &copy.url], &login].concat()).ok();
    assert!(said.contains("removed:  the shard map of _replicator, which does not come back\n"), "{said}");
    let there = copy.databases().await;
    assert!(!there.contains(&"_replicator".to_owned()) && there.contains(&"user/foo".to_owned()), "{there:?}");
}
