//! The SDK's client: its own retries, time limits and optional checksums are off, for they are ours.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;

use super::CredentialSource;
use crate::config::{S3Checksum, S3Config};
use crate::error::{Error, ErrorKind, Result};

const CONNECT: Duration = Duration::from_secs(10);

/// A client for the store of `config`.
pub(super) fn build(name: &str, config: &S3Config, credentials: CredentialSource) -> Result<LazyClient> {
    check(name, config)?;
    let http = http(name, config.ca_file.as_deref())?;
    // `WhenRequired` also drops a checksum that a request asks for, and would leave its body unguarded.
    let checksums = match config.checksum {
        S3Checksum::Sha256 => RequestChecksumCalculation::WhenRequired,
        S3Checksum::Crc64nvme => RequestChecksumCalculation::WhenSupported,
    };
    let mut builder = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(config.region.clone()))
        .http_client(http.clone())
        .force_path_style(config.path_style.unwrap_or(config.endpoint.is_some()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(checksums)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .disable_s3_express_session_auth(true)
        .disable_clock_skew_correction(true);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint_url(endpoint.trim_end_matches('/'));
    }
    Ok(LazyClient { builder, http, region: Region::new(config.region.clone()), credentials, made: OnceCell::new() })
}

/// A client that looks for credentials with its first request, not before.
pub(super) struct LazyClient {
    builder: aws_sdk_s3::config::Builder,
    http: SharedHttpClient,
    region: Region,
    credentials: CredentialSource,
    made: OnceCell<Client>,
}

impl fmt::Debug for LazyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyClient").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl LazyClient {
    pub(super) async fn get(&self) -> &Client {
        self.made.get_or_init(|| self.make()).await
    }

    async fn make(&self) -> Client {
        let provider =
            match &self.credentials {
                CredentialSource::Static { access, secret, session } => SharedCredentialsProvider::new(
                    Credentials::new(access.clone(), secret.clone(), session.clone(), None, "configuration"),
                ),
                CredentialSource::Chain { profile } => {
                    let base = ProviderConfig::without_region().with_http_client(self.http.clone());
                    let mut chain = DefaultCredentialsChain::builder()
                        .configure(base.with_region(Some(self.region.clone())))
                        .region(self.region.clone());
                    if let Some(profile) = profile {
                        chain = chain.profile_name(profile);
                    }
                    SharedCredentialsProvider::new(chain.build().await)
                }
            };
        Client::from_conf(self.builder.clone().credentials_provider(provider).build())
    }
}

fn check(name: &str, config: &S3Config) -> Result<()> {
    let bad = |message: String, hint: &str| Err(Error::new(ErrorKind::Config, format!("{name}: {message}")).hint(hint));
    if let Some(endpoint) = &config.endpoint
        && !endpoint.starts_with("https://")
        && !endpoint.starts_with("http://")
    {
        return bad(format!("the endpoint {endpoint:?} is not a URL"), "write https://HOST or https://HOST:PORT.");
    }
    let plain = config.endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));
    if config.checksum == S3Checksum::Crc64nvme && plain {
        return bad(
            "`checksum: crc64nvme` leaves bodies unsigned, so it needs TLS".into(),
            "use an https:// endpoint, or `checksum: sha256`.",
        );
    }
    if config.part_size.0 < 5 << 20 || config.part_size.0 > 5 << 30 {
        return bad(format!("`part_size` is {}", config.part_size), "S3 takes parts of 5MiB to 5GiB; use 16MiB.");
    }
    if config.concurrency == 0 {
        return bad("`concurrency` is 0".into(), "use 1 or more.");
    }
    if config.upload_memory().0 / 2 < config.part_size.0 {
        return bad(
            format!("`upload_memory` is {}, and `part_size` {}", config.upload_memory(), config.part_size),
            "two parts must fit: one is filled while another one is on its way.",
        );
    }
    Ok(())
}

fn http(name: &str, ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let mut trust = TrustStore::default();
    if let Some(path) = ca_file {
        let pem = std::fs::read(path)
            .map_err(|e| Error::io(e, format!("{name}: cannot read `ca_file` {}", path.display())))?;
        trust = trust.with_pem_certificate(checked_pem(name, path, pem)?);
    }
    let context = TlsContext::builder().with_trust_store(trust).build().map_err(|e| {
        Error::new(ErrorKind::Config, format!("{name}: the certificate authorities cannot be used")).caused_by(e)
    })?;
    Ok(Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context).build_https())
}

/// The TLS library panics on what is not a certificate.
fn checked_pem(name: &str, path: &Path, pem: Vec<u8>) -> Result<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(&pem);
    let begins = text.matches(BEGIN).count();
    // DER of a certificate is a SEQUENCE with a two-byte length: base64 of it begins with MII.
    let whole = text.split(BEGIN).skip(1).all(|rest| {
        rest.split_once(END).is_some_and(|(body, _)| {
            let body = body.trim();
            body.starts_with("MII") && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=\r\n".contains(&b))
        })
    });
    if begins == 0 || !whole {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{name}: {} holds no certificate in PEM form", path.display()),
        )
        .hint("`ca_file` takes one or more blocks that begin with -----BEGIN CERTIFICATE-----."));
    }
    Ok(pem)
}
