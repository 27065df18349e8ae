//! An S3 server in memory that fails as told. It runs on a thread of its own, so that programs can use it too.
//!
//! ```ignore
//! let server = FaultServer::start();
//! server.set_fault(Fault::error("UploadPart", 503, "SlowDown").after(2).times(3));
//! // ... use server.endpoint(), server.bucket(), ACCESS and SECRET ...
//! assert!(server.objects().is_empty() && server.uploads().is_empty());
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

mod memory;

pub(crate) use memory::Stored;

/// The access key that the server knows.
pub(crate) const ACCESS: &str = "AKTEST";
/// Its secret.
pub(crate) const SECRET: &str = "SKTEST";
/// The one bucket.
pub(crate) const BUCKET: &str = "backups";

#[derive(Debug, Clone)]
enum What {
    /// An error of this status and code, without doing anything.
    Error(u16, String),
    /// Status 200, and an error in the body.
    ErrorIn200(String),
    /// Nothing is answered, ever.
    Hang,
    /// The connection breaks while the body arrives; nothing is done.
    Reset,
    /// It is done, and then the connection breaks.
    LostReply,
    /// It is done, and the answer lacks the version id.
    NoVersionId,
    /// The body of the answer breaks off after so many bytes.
    ShortBody(usize),
    /// A body without `Content-MD5` or a checksum is refused, as AWS does where objects are locked.
    Unguarded,
}

/// What goes wrong, with which calls.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    op: &'static str,
    what: What,
    after: u32,
    times: u32,
}

impl Fault {
    fn new(op: &'static str, what: What) -> Self {
        Self { op, what, after: 0, times: u32::MAX }
    }
    /// The call `op` (`PutObject`, or `*` for all) is answered with this error.
    pub(crate) fn error(op: &'static str, status: u16, code: &str) -> Self {
        Self::new(op, What::Error(status, code.to_owned()))
    }
    /// It is answered with status 200 and an error in the body.
    pub(crate) fn error_in_200(op: &'static str, code: &str) -> Self {
        Self::new(op, What::ErrorIn200(code.to_owned()))
    }
    /// It is never answered.
    pub(crate) fn hang(op: &'static str) -> Self {
        Self::new(op, What::Hang)
    }
    /// The connection breaks before anything is done.
    pub(crate) fn reset(op: &'static str) -> Self {
        Self::new(op, What::Reset)
    }
    /// The connection breaks after it is done.
    pub(crate) fn lost_reply(op: &'static str) -> Self {
        Self::new(op, What::LostReply)
    }
    /// The answer has no version id.
    pub(crate) fn no_version_id(op: &'static str) -> Self {
        Self::new(op, What::NoVersionId)
    }
    /// The body of the answer breaks off.
    pub(crate) fn short_body(op: &'static str, bytes: usize) -> Self {
        Self::new(op, What::ShortBody(bytes))
    }
    /// Bodies need `Content-MD5` or a checksum.
    pub(crate) fn unguarded(op: &'static str) -> Self {
        Self::new(op, What::Unguarded)
    }
    /// Whether the caller has to give up by itself.
    pub(crate) fn hangs(&self) -> bool {
        matches!(self.what, What::Hang)
    }
    /// The first `n` such calls go well.
    #[must_use]
    pub(crate) fn after(mut self, n: u32) -> Self {
        self.after = n;
        self
    }
    /// Only so many calls fail; without this all do.
    #[must_use]
    pub(crate) fn times(mut self, n: u32) -> Self {
        self.times = n;
        self
    }
}

#[derive(Debug, Default)]
struct Script {
    faults: Vec<Fault>,
    calls: Vec<&'static str>,
    guards: Vec<Guard>,
}

/// How the body of a request was guarded.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) op: &'static str,
    /// `x-amz-content-sha256`.
    pub(crate) sha256: String,
    /// `x-amz-checksum-crc64nvme`.
    pub(crate) crc64nvme: Option<String>,
    /// `Content-MD5`.
    pub(crate) md5: Option<String>,
    /// `x-amz-security-token`, of temporary keys.
    pub(crate) token: Option<String>,
    /// Whether there are trailers, or chunks of AWS's own.
    pub(crate) chunked: bool,
}

impl Guard {
    fn of(op: &'static str, request: &Request<Incoming>) -> Self {
        let header =
            |name: &str| request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        Self {
            op,
            sha256: header("x-amz-content-sha256").unwrap_or_default(),
            crc64nvme: header("x-amz-checksum-crc64nvme"),
            md5: header("content-md5"),
            token: header("x-amz-security-token"),
            chunked: header("x-amz-trailer").is_some() || header("content-encoding").is_some(),
        }
    }
}

impl Script {
    fn next(&mut self, op: &'static str) -> Option<What> {
        self.calls.push(op);
        for fault in self.faults.iter_mut().filter(|f| f.op == op || f.op == "*") {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= u32::from(fault.times != u32::MAX);
                return Some(fault.what.clone());
            }
        }
        None
    }
}

/// The server; it stops when dropped.
#[derive(Debug)]
pub(crate) struct FaultServer {
    endpoint: String,
    script: Arc<Mutex<Script>>,
    memory: memory::Memory,
    _stop: oneshot::Sender<()>,
}

impl FaultServer {
    /// With a bucket that keeps no versions.
    pub(crate) fn start() -> Self {
        Self::with(false, None)
    }

    /// With a bucket that keeps versions.
    pub(crate) fn start_versioned() -> Self {
        Self::with(true, None)
    }

    /// With TLS, by a certificate for 127.0.0.1 that is written to `cert.pem` in `dir`.
    pub(crate) fn start_tls(dir: &std::path::Path) -> Self {
        Self::with(false, Some(tls(dir)))
    }

    fn with(versioned: bool, tls: Option<TlsAcceptor>) -> Self {
        let memory = memory::Memory::new(BUCKET, versioned);
        let script = Arc::new(Mutex::new(Script::default()));
        let mut builder = S3ServiceBuilder::new(memory.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = builder.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let endpoint = format!(
            "{}://{}",
            if tls.is_some() { "https" } else { "http" },
            listener.local_addr().expect("its address")
        );
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, service, shared, tls) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { endpoint, script, memory, _stop: stop }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
    /// The bucket's name.
    pub(crate) fn bucket(&self) -> &'static str {
        BUCKET
    }
    /// Adds a fault; the first that fits a call counts.
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.script.lock().expect("no panic").faults.push(fault);
    }
    /// From now on nothing goes wrong.
    pub(crate) fn clear_faults(&self) {
        self.script.lock().expect("no panic").faults.clear();
    }
    /// From now on the condition of a GET is not heeded, as by stores that do not know it.
    pub(crate) fn ignore_if_match(&self) {
        self.memory.ignore_if_match();
    }
    /// Objects whose keys contain the text now lie in an archive class.
    pub(crate) fn freeze(&self, text: &str) {
        self.memory.freeze(text);
    }
    /// They can be read for a while.
    pub(crate) fn thaw(&self) {
        self.memory.thaw();
    }
    /// From now on a GET sends whole objects, whatever range was asked for.
    pub(crate) fn ignore_range(&self) {
        self.memory.ignore_range();
    }
    /// The calls so far, by name.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.script.lock().expect("no panic").calls.clone()
    }
    /// How the bodies of one call were guarded.
    pub(crate) fn guards(&self, op: &str) -> Vec<Guard> {
        self.script.lock().expect("no panic").guards.iter().filter(|g| g.op == op).cloned().collect()
    }
    /// How often one call was made.
    pub(crate) fn count(&self, op: &str) -> usize {
        self.calls().iter().filter(|c| **c == op).count()
    }
    /// What is visible: the newest version of each key.
    pub(crate) fn objects(&self) -> Vec<Stored> {
        self.memory.objects()
    }
    /// Keys of unfinished uploads.
    pub(crate) fn uploads(&self) -> Vec<String> {
        self.memory.uploads()
    }
}

#[allow(clippy::disallowed_methods, reason = "a certificate for the tests")]
fn tls(dir: &std::path::Path) -> TlsAcceptor {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl: install the packages with `tests/run packages`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let cert = CertificateDer::from_pem_file(&cert).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    listener: std::net::TcpListener,
    service: S3Service,
    script: Arc<Mutex<Script>>,
    tls: Option<TlsAcceptor>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (service, script, tls) = (service.clone(), Arc::clone(&script), tls.clone());
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request| {
                let (service, script) = (service.clone(), Arc::clone(&script));
                async move { answer(request, &service, &script).await }
            });
            let http = hyper::server::conn::http1::Builder::new();
            if let Some(tls) = tls {
                let Ok(socket) = tls.accept(socket).await else { return };
                let _ = http.serve_connection(TokioIo::new(socket), answer).await;
            } else {
                let _ = http.serve_connection(TokioIo::new(socket), answer).await;
            }
        });
    }
}

/// A connection that is cut without an answer.
type Broken = std::io::Error;

fn broken(why: impl std::fmt::Display) -> Broken {
    Broken::other(why.to_string())
}

async fn answer(
    request: Request<Incoming>,
    service: &S3Service,
    script: &Mutex<Script>,
) -> Result<Response<Body>, Broken> {
    let op = operation(&request);
    let what = {
        let mut script = script.lock().expect("no panic");
        script.guards.push(Guard::of(op, &request));
        script.next(op)
    };
    match what {
        None => pass(request, service).await,
        Some(What::Error(status, code)) => {
            drain(request).await?;
            Ok(error(status, &code))
        }
        Some(What::ErrorIn200(code)) => {
            drain(request).await?;
            Ok(error(200, &code))
        }
        Some(What::Unguarded) => {
            let guard = Guard::of(op, &request);
            if guard.md5.is_some() || guard.crc64nvme.is_some() {
                return pass(request, service).await;
            }
            drain(request).await?;
            let text = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
            Ok(error_text(400, "InvalidRequest", text))
        }
        Some(What::Hang) => loop {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        },
        Some(What::Reset) => {
            let _ = request.into_body().frame().await;
            Err(broken("reset"))
        }
        Some(What::LostReply) => {
            pass(request, service).await?.into_body().collect().await.map_err(broken)?;
            Err(broken("the reply is lost"))
        }
        Some(What::NoVersionId) => {
            let mut response = pass(request, service).await?;
            response.headers_mut().remove("x-amz-version-id");
            Ok(response)
        }
        Some(What::ShortBody(bytes)) => {
            let (head, body) = pass(request, service).await?.into_parts();
            let all = body.collect().await.map_err(broken)?.to_bytes();
            if all.len() <= bytes {
                return Ok(Response::from_parts(head, Body::from(all)));
            }
            // The first bytes must have left before the connection breaks.
            let cut = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(broken("cut"))
            };
            let start = stream::once(std::future::ready(Ok(Frame::data(all.slice(..bytes)))));
            let frames = stream::StreamExt::chain(start, stream::once(cut));
            Ok(Response::from_parts(head, Body::http_body_unsync(StreamBody::new(Box::pin(frames)))))
        }
    }
}

async fn pass(request: Request<Incoming>, service: &S3Service) -> Result<Response<Body>, Broken> {
    service.call(request.map(Body::from)).await.map_err(|e| broken(format_args!("{e:?}")))
}

async fn drain(request: Request<Incoming>) -> Result<(), Broken> {
    request.into_body().collect().await.map_err(broken)?;
    Ok(())
}

fn error(status: u16, code: &str) -> Response<Body> {
    error_text(status, code, "as told")
}

fn error_text(status: u16, code: &str, text: &str) -> Response<Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>"
    );
    let response = Response::builder().status(status).header("content-type", "application/xml");
    response.body(Body::from(xml)).expect("a response")
}

fn operation(request: &Request<Incoming>) -> &'static str {
    let key = request.uri().path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    let query = request.uri().query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|q| q.split('=').next() == Some(name));
    match (request.method(), key.is_empty()) {
        (&Method::HEAD, true) => "HeadBucket",
        (&Method::GET, true) if has("versioning") => "GetBucketVersioning",
        (&Method::GET, true) if has("versions") => "ListObjectVersions",
        (&Method::GET, true) if has("uploads") => "ListMultipartUploads",
        (&Method::GET, true) => "ListObjectsV2",
        (&Method::HEAD, false) => "HeadObject",
        (&Method::GET, false) => "GetObject",
        (&Method::POST, false) if has("uploads") => "CreateMultipartUpload",
        (&Method::POST, false) => "CompleteMultipartUpload",
        (&Method::PUT, false) if has("partNumber") => "UploadPart",
        (&Method::PUT, false) => "PutObject",
        (&Method::DELETE, false) if has("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, false) => "DeleteObject",
        _ => "Other",
    }
}
