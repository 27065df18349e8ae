//! What belongs to a database but is not inside its dump: owner, encoding, settings, grants.

use serde::{Deserialize, Serialize};

use super::connect::{ident, literal};

/// As the catalogue of the server says it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Properties {
    owner: String,
    encoding: String,
    collate: String,
    ctype: String,
    /// `c` for the C library, `i` for ICU, `b` for the built-in one.
    provider: Option<String>,
    locale: Option<String>,
    tablespace: String,
    connection_limit: i64,
    comment: Option<String>,
    #[serde(default)]
    settings: Option<Vec<Setting>>,
    /// Absent: the default grants.
    #[serde(default)]
    grants: Option<Vec<Grant>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Setting {
    /// For this role only; absent: for all.
    role: Option<String>,
    /// `name=value`.
    setting: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Grant {
    /// Absent: PUBLIC.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

/// A query for the JSON of all databases that can be dumped, with their properties.
pub(super) const QUERY: &str = "select coalesce(json_agg(x order by x->>'database'), '[]') from (
 select json_build_object('database', d.datname, 'properties', json_build_object(
  'owner', pg_get_userbyid(d.datdba), 'encoding', pg_encoding_to_char(d.encoding),
  'collate', d.datcollate, 'ctype', d.datctype,
  'provider', to_jsonb(d)->>'datlocprovider',
  'locale', coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale'),
  'tablespace', t.spcname, 'connection_limit', d.datconnlimit,
  'comment', shobj_description(d.oid, 'pg_database'),
  'settings', (select json_agg(json_build_object('role', r.rolname, 'setting', c))
    from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole, unnest(s.setconfig) c where s.setdatabase = d.oid),
  'grants', case when d.datacl is not null then (select coalesce(json_agg(json_build_object('grantee', g.rolname,
    'privilege', a.privilege_type, 'grantable', a.is_grantable)), '[]')
    from aclexplode(d.datacl) a left join pg_roles g on g.oid = a.grantee) end)) x
 from pg_database d join pg_tablespace t on t.oid = d.dattablespace
 where d.datallowconn and not d.datistemplate and d.datconnlimit <> -2) y";

/// Settings whose values are lists of identifiers, quoted already.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

impl Properties {
    /// `CREATE DATABASE` under the name `name`.
    pub(super) fn create(&self, name: &str) -> String {
        let mut sql = format!(
            "create database {} template template0 owner {} encoding {} lc_collate {} lc_ctype {}",
            ident(name),
            ident(&self.owner),
            literal(&self.encoding),
            literal(&self.collate),
            literal(&self.ctype)
        );
        let locale = self.locale.as_deref().map(literal).unwrap_or_default();
        match self.provider.as_deref() {
            Some("i") => sql.push_str(&format!(" locale_provider icu icu_locale {locale}")),
            Some("b") => sql.push_str(&format!(" locale_provider builtin builtin_locale {locale}")),
            _ => {}
        }
        if self.tablespace != "pg_default" {
            sql.push_str(&format!(" tablespace {}", ident(&self.tablespace)));
        }
        sql
    }

    /// The statements that give `name` its settings and grants, run after the data is in.
    pub(super) fn apply(&self, name: &str) -> Vec<String> {
        let name = ident(name);
        let mut all = Vec::new();
        if let Some(comment) = &self.comment {
            all.push(format!("comment on database {name} is {}", literal(comment)));
        }
        for Setting { role, setting } in self.settings.iter().flatten() {
            let Some((key, value)) = setting.split_once('=') else { continue };
            let value = if LISTS.contains(&key) && !value.is_empty() { value.to_owned() } else { literal(value) };
            let key = key.split('.').map(ident).collect::<Vec<_>>().join(".");
            all.push(match role {
                Some(role) => format!("alter role {} in database {name} set {key} to {value}", ident(role)),
                None => format!("alter database {name} set {key} to {value}"),
            });
        }
        if let Some(grants) = &self.grants {
            all.push(format!("revoke all on database {name} from public, {}", ident(&self.owner)));
            for grant in grants.iter().filter(|g| g.privilege.bytes().all(|b| b.is_ascii_uppercase())) {
                let grantee = grant.grantee.as_deref().map_or("public".to_owned(), ident);
                let option = if grant.grantable { " with grant option" } else { "" };
                all.push(format!("grant {} on database {name} to {grantee}{option}", grant.privilege));
            }
        }
        if self.connection_limit >= 0 {
            all.push(format!("alter database {name} connection limit {}", self.connection_limit));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_become_statements() {
        let text = r#"{"owner":"o'1","encoding":"UTF8","collate":"C","ctype":"C","provider":"i","locale":"de",
            "tablespace":"fast","connection_limit":7,"comment":"it's","settings":[{"role":null,"setting":"search_path=\"$user\", x"},
            {"role":"r","setting":"my.x=a'b"}],"grants":[{"grantee":null,"privilege":"CONNECT","grantable":false}]}"#;
        let properties: Properties = serde_json::from_str(text).unwrap();
        assert_eq!(
            properties.create("n"),
            "create database \"n\" template template0 owner \"o'1\" encoding E'UTF8' lc_collate E'C' lc_ctype E'C' \
             locale_provider icu icu_locale E'de' tablespace \"fast\""
        );
        assert_eq!(
            properties.apply("n"),
            [
                "comment on database \"n\" is E'it''s'",
                "alter database \"n\" set \"search_path\" to \"$user\", x",
                "alter role \"r\" in database \"n\" set \"my\".\"x\" to E'a''b'",
                "revoke all on database \"n\" from public, \"o'1\"",
                "grant CONNECT on database \"n\" to public",
                "alter database \"n\" connection limit 7",
            ]
        );
    }
}
