//! An Elasticsearch (1.7 to 9) or OpenSearch (1 to 3) cluster, by its snapshot API.
//!
//! - **Captured**: all open indices and data streams that `include` and `exclude` choose, as one snapshot in each
//!   configured repository, one after the other; and a line per index with its documents (`inventory`). The snapshots
//!   stay in the repositories, and the manifest names them (`external`).
//!   With `archive`, the directory of one `fs` repository besides (`data`).
//! - **Consistency**: fuzzy. Each shard is one moment in time, but not the same one.
//! - **Rights**: docs/elasticsearch.md lists them.
//! - **Not captured**: closed indices; the product's own indices, unless `include` names them; cluster settings and
//!   templates, unless `global_state`; transient settings, registered repositories, the nodes' files and keystores.
//! - **By hand**: `POST _snapshot/REPOSITORY/SNAPSHOT/_restore` with `indices`, for the names in the manifest.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::artefact::ArtefactSink;
use crate::config::ElasticsearchConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{External, Manifest};

use super::{
    Captured, Context, DrillRequest, Drilled, Held, PointReader, Probe, Repository, RestoreRequest, Restored, Source,
    Verified,
};
use client::Client;
use snapshot::Listed;

mod archive;
mod capture;
mod client;
mod indices;
mod inventory;
mod repository;
mod restore;
mod snapshot;
mod version;

/// This kind in the table of sources.
pub const DRIVER: super::Driver = super::Driver {
    kind: "elasticsearch",
    summary: "an Elasticsearch or OpenSearch cluster, by snapshots in its own repositories",
};

/// Longest wait for one repository to say what it holds.
const LISTING: Duration = Duration::from_secs(120);

/// A cluster as a source.
#[derive(Debug)]
pub struct Elasticsearch {
    config: ElasticsearchConfig,
}

impl Elasticsearch {
    /// From its settings.
    pub fn new(config: ElasticsearchConfig) -> Self {
        Self { config }
    }
}

/// Snapshots of this service in one repository.
async fn in_repository(client: &Client, version: &version::Version, cx: &Context, name: &str) -> Result<Vec<Held>> {
    let listed = tokio::time::timeout(LISTING, snapshot::list(client, version, name, cx)).await;
    let listed = listed.unwrap_or_else(|_| {
        let text = format!("repository {name:?} did not say within {} s what it holds", LISTING.as_secs());
        Err(Error::new(ErrorKind::Unavailable, text))
    })?;
    let one = |listed: Listed| Held {
        state: listed.seen.held_state(),
        external: External {
            repository: name.to_owned(),
            kind: String::new(),
            bucket: None,
            base_path: None,
            name: listed.name,
            uuid: listed.seen.uuid,
        },
        point: listed.point,
        ours: listed.ours,
    };
    Ok(listed.into_iter().map(one).collect())
}

#[async_trait]
impl Source for Elasticsearch {
    fn kind(&self) -> &'static str {
        "elasticsearch"
    }

    fn method(&self) -> &'static str {
        "snapshot"
    }

    async fn probe(&self, _: &Context) -> Result<Probe> {
        let client = Client::new(&self.config)?;
        let version = version::ask(&client).await?;
        Ok(Probe { server_version: Some(version.to_string()), ..Probe::default() })
    }

    async fn backup(&self, cx: &Context, sink: &dyn ArtefactSink) -> Result<Captured> {
        capture::backup(&self.config, &Client::new(&self.config)?, cx, sink).await
    }

    async fn restore(&self, cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored> {
        if request.to.is_some() {
            restore::refuse_cluster_flags(request)?;
            return archive::read::restore(cx, point, request).await;
        }
        restore::restore(&self.config, &Client::new(&self.config)?, cx, point, request).await
    }

    /// Only the cluster can read its repositories: it must be up, unless the point has an archive of one.
    async fn verify(&self, cx: &Context, point: &PointReader) -> Result<Verified> {
        if let Some(artefact) = archive::read::of(&point.manifest) {
            return archive::read::verify(cx, point, artefact).await;
        }
        restore::verify(&self.config, &Client::new(&self.config)?, point).await
    }

    /// Aborts or removes the snapshots of points that came to nothing. Does not touch the cluster when there are none.
    async fn cleanup(&self, cx: &Context) -> Result<()> {
        if cx.unfinished.is_empty() {
            return Ok(());
        }
        let client = Client::new(&self.config)?;
        let version = version::ask(&client).await?;
        let mut failed = None;
        for name in self.config.repositories.keys() {
            let held = match snapshot::list(&client, &version, name, cx).await {
                Ok(held) => held,
                // A repository that was never registered holds nothing.
                Err(err) if err.kind == ErrorKind::NotFound => continue,
                Err(err) => {
                    failed = Some(err);
                    continue;
                }
            };
            for left in held.iter().filter(|l| l.ours && cx.unfinished.contains(&l.point)) {
                if let Err(err) = snapshot::remove(&client, cx, name, &left.name).await {
                    failed = Some(err);
                }
            }
        }
        failed.map_or(Ok(()), |e| Err(e.within("a snapshot of an interrupted run may be left")))
    }

    async fn drill(&self, cx: &Context, point: &PointReader, _: &DrillRequest) -> Result<Drilled> {
        restore::drill::drill(&self.config, &Client::new(&self.config)?, cx, point).await
    }

    /// The copies lie in the cluster, which is asked for its room.
    fn drill_bytes(&self, _: &Manifest, _: &DrillRequest) -> u64 {
        0
    }

    fn production(&self, _: &Manifest) -> Vec<PathBuf> {
        Vec::new()
    }

    async fn drill_cleanup(&self, cx: &Context) -> Result<()> {
        restore::drill::cleanup(&Client::new(&self.config)?, cx).await
    }

    async fn held(&self, cx: &Context) -> Result<Vec<Repository>> {
        let client = Client::new(&self.config)?;
        let version = version::ask(&client).await?;
        let mut all = Vec::new();
        for name in self.config.repositories.keys() {
            all.push(Repository { name: name.clone(), held: in_repository(&client, &version, cx, name).await });
        }
        Ok(all)
    }

    async fn forget(&self, cx: &Context, external: &External) -> Result<()> {
        snapshot::remove(&Client::new(&self.config)?, cx, &external.repository, &external.name).await
    }
}
