//! A node that asks for a login. `tests/matrix-search` runs this with Elasticsearch 8, whose test build can do that.

use crate::common::search::{Deployment, asked_for, start};

const PASSWORD: &str = "hunter22";

#[test]
#[ignore = "tests/matrix-search runs it with Elasticsearch 8"]
fn who_may_not_log_in_is_told_and_who_may_restores() {
    let node = start(asked_for().expect("BACKSTAY_SEARCH"), &[("LOGIN_PASSWORD", PASSWORD)]).expect("a node");
    let node = node.with_login("elastic", PASSWORD);
    node.fill("login-a", 10, 1);
    let before = node.documents("login-a");
    let search = "      repositories: {near: {fs: {location: near}}}\n";
    let keep = "    keep: {daily: 3}\n";
    let at = Deployment::new(&node.url, search, keep);
    let secret = |name: &str, text: &str| {
        let path = at.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        format!("{{file: {}}}", path.display())
    };
    let wrong = secret("wrong", "wrong-password\n");
    let cases = [
        (String::new(), "missing authentication credentials"),
        (format!("      username: elastic\n      password: {wrong}\n"), "unable to authenticate user [elastic]"),
        (format!("      api_key: {}\n", secret("key", "bm9ib2R5OnNlY3JldA==\n")), "(HTTP status 401)"),
    ];
    for (login, text) in cases {
        at.configure(&node.url, &format!("{login}{search}"), keep);
        let ran = at.run(&["-vvv", "backup"]);
        assert_eq!(ran.code, 77, "{ran:#?}");
        assert!(ran.stderr.contains(text), "{text}: {ran:#?}");
        assert!(
            ran.stderr.contains("hint: check `username` and `password`, or `api_key`, of the service."),
            "{ran:#?}"
        );
        assert!(!ran.stderr.contains("wrong-password") && !ran.stderr.contains("bm9ib2R5"), "{ran:#?}");
    }
    let login = format!("      username: elastic\n      password: {}\n", secret("right", PASSWORD));
    at.configure(&node.url, &format!("{login}{search}"), keep);
    at.run(&["backup"]).ok();
    at.run(&["drill"]).ok();
    node.must("DELETE", "/login-a", None);
    at.run(&["restore", "search", "latest"]).ok();
    assert_eq!(node.documents("login-a"), before);
}
