//! A registry of the tests' own, by hand and blocking: it does what OCI distribution says unless a script says otherwise,
//! and writes down every request. With a script it imitates others, or misbehaves.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The type of a list of manifests.
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The type of a layer that is not compressed.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, as far as it came.
    pub body: Vec<u8>,
}

impl Request {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a part of the query, or of a form in the body.
    pub fn values(&self, name: &str) -> Vec<String> {
        let form = parse_query(&String::from_utf8_lossy(&self.body));
        let pairs = self.query.iter().chain(&form);
        pairs.filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// User and password of Basic authentication.
    pub fn basic(&self) -> Option<(String, String)> {
        let text = STANDARD.decode(self.header("authorization")?.strip_prefix("Basic ")?).ok()?;
        let text = String::from_utf8(text).ok()?;
        text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
    }

    /// The token of Bearer authentication.
    pub fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    /// Whether it is for a blob.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside `content-length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Ends the connection after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// What `content-length` says, when it is to lie.
    pub says_length: Option<usize>,
    /// Waits so long after each piece of the body.
    pub slowly: Option<(usize, Duration)>,
}

impl Reply {
    /// An answer without a body.
    pub fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Reply {
        Reply { body: body.into(), ..self }
    }

    /// An answer of JSON.
    pub fn json(value: &serde_json::Value) -> Reply {
        Reply::new(200).header("content-type", "application/json").body(value.to_string())
    }

    /// 401 with a challenge.
    pub fn challenge(challenge: impl Into<String>) -> Reply {
        Reply::new(401).header("www-authenticate", challenge).body(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
    }
}

/// What a registry does otherwise than others: `None` leaves it to the usual.
pub type Script = Box<dyn Fn(&Request, &Contents) -> Option<Reply> + Send + Sync>;

/// What a registry has.
#[derive(Default)]
pub struct Contents {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    manifests: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
    uploads: Mutex<BTreeMap<String, Vec<u8>>>,
    requests: Mutex<Vec<Request>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Contents {
    /// The bytes of a blob.
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        lock(&self.blobs).get(digest).cloned()
    }

    /// A manifest with its type, by `repository:tag` or `repository@digest`.
    pub fn manifest(&self, name: &str) -> Option<(String, Vec<u8>)> {
        lock(&self.manifests).get(name).cloned()
    }

    /// Adds a blob.
    pub fn add_blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        lock(&self.blobs).insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Adds a manifest under a tag and its digest.
    pub fn add_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let mut manifests = lock(&self.manifests);
        manifests.insert(format!("{repository}@{digest}"), (kind.to_owned(), bytes.to_vec()));
        manifests.insert(format!("{repository}:{tag}"), (kind.to_owned(), bytes.to_vec()));
        digest
    }

    /// Adds an image of plain layers; returns the digest of its manifest.
    pub fn add_image(&self, repository: &str, tag: &str, layers: &[&[u8]]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        self.add_image_with(repository, tag, layers, &config)
    }

    /// Adds an image with this config.
    pub fn add_image_with(&self, repository: &str, tag: &str, layers: &[&[u8]], config: &serde_json::Value) -> String {
        let config = config.to_string().into_bytes();
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let listed: Vec<_> = layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": listed,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        });
        self.add_blob(&config);
        layers.iter().for_each(|layer| drop(self.add_blob(layer)));
        self.add_manifest(repository, tag, MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    /// How many of the requests so far are like this.
    pub fn count(&self, is_like: impl Fn(&Request) -> bool) -> usize {
        lock(&self.requests).iter().filter(|request| is_like(request)).count()
    }

    /// What any registry does.
    pub fn usual(&self, request: &Request) -> Reply {
        let Some(rest) = request.path.strip_prefix("/v2/") else { return Reply::new(404) };
        if let Some((repository, name)) = rest.split_once("/manifests/") {
            return self.usual_manifest(request, repository, name);
        }
        if let Some((_, upload)) = rest.split_once("/blobs/uploads/") {
            return self.usual_upload(request, upload);
        }
        match rest.split_once("/blobs/") {
            Some((_, digest)) => self.usual_blob(request, digest),
            None => Reply::new(if rest.is_empty() { 200 } else { 404 }),
        }
    }

    fn usual_manifest(&self, request: &Request, repository: &str, name: &str) -> Reply {
        let key = format!("{repository}{}{name}", if name.contains(':') { '@' } else { ':' });
        if request.method == "PUT" {
            let kind = request.header("content-type").unwrap_or_default();
            let tag = if name.contains(':') { "untagged" } else { name };
            let digest = self.add_manifest(repository, tag, kind, &request.body);
            return Reply::new(201).header("docker-content-digest", digest);
        }
        match self.manifest(&key) {
            Some((kind, bytes)) => {
                let stated = digest(&bytes);
                Reply::new(200).header("content-type", kind).header("docker-content-digest", stated).body(bytes)
            }
            None => Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        }
    }

    fn usual_blob(&self, request: &Request, digest: &str) -> Reply {
        let Some(bytes) = self.blob(digest) else { return Reply::new(404) };
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let start = range.and_then(|start| start.parse::<usize>().ok()).filter(|start| *start < bytes.len());
        let total = bytes.len();
        match start {
            None => Reply::new(200).header("etag", format!("\"{digest}\"")).body(bytes),
            Some(start) => Reply::new(206)
                .header("content-range", format!("bytes {start}-{}/{total}", total - 1))
                .body(bytes[start..].to_vec()),
        }
    }

    fn usual_upload(&self, request: &Request, upload: &str) -> Reply {
        let place = |upload: &str| {
            request.path.split("/blobs/uploads/").next().unwrap_or_default().to_owned() + "/blobs/uploads/" + upload
        };
        let mut uploads = lock(&self.uploads);
        match request.method.as_str() {
            "POST" => {
                let mounted = request.values("mount").first().cloned().filter(|digest| self.blob(digest).is_some());
                if mounted.is_some() {
                    return Reply::new(201);
                }
                let number = format!("upload-{}", lock(&self.requests).len());
                uploads.insert(number.clone(), Vec::new());
                Reply::new(202).header("location", place(&number)).header("range", "0-0")
            }
            "GET" | "PATCH" => {
                let Some(known) = uploads.get_mut(upload) else { return Reply::new(404) };
                known.extend_from_slice(&request.body);
                let end = known.len().saturating_sub(1);
                let status = if request.method == "GET" { 204 } else { 202 };
                Reply::new(status).header("location", place(upload)).header("range", format!("0-{end}"))
            }
            "PUT" => {
                let Some(mut known) = uploads.remove(upload) else { return Reply::new(404) };
                known.extend_from_slice(&request.body);
                let stated = request.values("digest").first().cloned().unwrap_or_default();
                if digest(&known) != stated {
                    return Reply::new(400)
                        .body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}"#);
                }
                lock(&self.blobs).insert(stated, known);
                Reply::new(201)
            }
            _ => Reply::new(405),
        }
    }

    /// Adds to an upload that was begun, as when its connection broke in the middle.
    pub fn add_to_upload(&self, path: &str, bytes: &[u8]) {
        let upload = path.rsplit('/').next().unwrap_or_default();
        if let Some(known) = lock(&self.uploads).get_mut(upload) {
            known.extend_from_slice(bytes);
        }
    }
}

/// A registry on a loopback port of its own; it ends when it is dropped.
pub struct Registry {
    /// What it has, and what was asked.
    pub contents: Arc<Contents>,
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Registry {
    /// Starts a registry that does nothing unusual.
    pub fn start() -> Registry {
        Registry::with(|_, _| None)
    }

    /// Starts a registry with a script.
    ///
    /// # Panics
    /// When no port can be listened on.
    pub fn with(script: impl Fn(&Request, &Contents) -> Option<Reply> + Send + Sync + 'static) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let contents = Arc::new(Contents::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let (known, over) = (Arc::clone(&contents), Arc::clone(&is_over));
        let script: Arc<Script> = Arc::new(Box::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (known, script) = (Arc::clone(&known), Arc::clone(&script));
                // A client that goes away ends its connection, and no more.
                thread::spawn(move || serve(&stream, &known, &script).ok());
            }
        });
        Registry { contents, address, is_over }
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes whoever waits for a connection.
        TcpStream::connect(self.address).ok();
    }
}

fn serve(stream: &TcpStream, contents: &Contents, script: &Script) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        lock(&contents.requests).push(request.clone());
        let reply = script(&request, contents).unwrap_or_else(|| contents.usual(&request));
        if !write_reply(stream, &request, &reply)? {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request { method, path: path.to_owned(), query: parse_query(query), ..Request::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

fn parse_query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&hex), 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// False when the connection is to end.
fn write_reply(mut stream: &TcpStream, request: &Request, reply: &Reply) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} It\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.status != 204 {
        head.push_str(&format!("content-length: {}\r\n", reply.says_length.unwrap_or(reply.body.len())));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" || reply.status == 204 {
        return Ok(true);
    }
    let end = reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len());
    match reply.slowly {
        None => stream.write_all(&reply.body[..end])?,
        Some((piece, pause)) => {
            for piece in reply.body[..end].chunks(piece) {
                stream.write_all(piece)?;
                thread::sleep(pause);
            }
        }
    }
    Ok(reply.cut_after.is_none() && reply.says_length.is_none())
}
