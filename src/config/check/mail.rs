//! Alarms: who is told, and how mail leaves.

use super::Found;
use crate::config::{Config, Mail};

impl Found {
    pub(super) fn check(&mut self, config: &Config) {
        let check = &config.check;
        for (index, address) in check.email.iter().enumerate() {
            self.address(&format!("email.{index}"), address);
        }
        if !check.email.is_empty() && config.mail.is_none() {
            let hint = "add `mail: {from: ADDRESS}`; without `smtp` in it the local sendmail is used.";
            self.wrong_hint("email", "mail has no sender", hint);
        }
        self.max_age(&check.max_age);
        if let Some(file) = &check.metrics_file {
            self.absolute("metrics_file", file);
            if file.extension().is_none_or(|e| e != "prom") {
                self.wrong("metrics_file", "does not end in `.prom`, and would not be read by the collector");
            }
        }
        if let Some(age) = check.max_drill_age {
            self.longer_than_nothing("max_drill_age", age);
        }
        for (host, services) in &check.expect {
            self.at(&["expect", host], |f| {
                f.name("", "a host", host);
                for (index, expected) in services.iter().enumerate() {
                    let (service, at) = expected.split_once('@').unzip();
                    f.name(&index.to_string(), "a service", service.unwrap_or(expected));
                    if at.is_some_and(|at| !config.destinations.contains_key(at)) {
                        f.wrong(&index.to_string(), format!("there is no destination \"{}\"", at.unwrap_or_default()));
                    }
                }
            });
        }
    }

    pub(super) fn mail(&mut self, mail: &Mail) {
        self.address("from", &mail.from);
        self.absolute("sendmail", &mail.sendmail);
        if let Some(ca_file) = &mail.ca_file {
            self.absolute("ca_file", ca_file);
        }
        if let Some(smtp) = &mail.smtp {
            self.smtp(smtp, mail.username.is_some());
        }
        if mail.username.is_some() != mail.password.is_some() {
            self.wrong("", "`username` and `password` go together");
        }
        if mail.smtp.is_none() && mail.username.is_some() {
            self.wrong("username", "has an effect with `smtp` only");
        }
    }

    /// The text is not repeated: it may hold a password.
    fn smtp(&mut self, smtp: &str, login: bool) {
        let rest = smtp.strip_prefix("smtp://").or_else(|| smtp.strip_prefix("smtps://"));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
            return self.wrong("smtp", "must be smtp://HOST:PORT or smtps://HOST:PORT");
        };
        if rest.contains('@') {
            self.wrong_hint("smtp", "holds a user or a password", "name them with `username` and `password`.");
        }
        let (host, options) = rest.split_once('?').unwrap_or((rest, ""));
        if !matches!(options, "" | "tls=none") {
            self.wrong("smtp", "knows only `?tls=none` after the host");
        }
        let port = host.trim_end_matches('/').rsplit_once(':').filter(|_| !host.ends_with(']')).map(|(_, port)| port);
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            self.wrong("smtp", "has no port number after `:`");
        }
        if options == "tls=none" && login {
            self.wrong_hint(
                "smtp",
                "would send the password in clear text",
                "remove `?tls=none` or `username` and `password`.",
            );
        }
    }

    fn address(&mut self, key: &str, address: &str) {
        if address.parse::<lettre::message::Mailbox>().is_err() {
            self.wrong(key, format!("\"{address}\" is not a mail address"));
        }
    }
}
