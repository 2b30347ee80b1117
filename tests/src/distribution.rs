//! Debian's `docker-registry` on a loopback port of its own: the registry that most others are made of. With its login
//! by password file, or with a token server of ours whose tokens it verifies.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::Other;
use crate::patience;
use crate::registry::{Registry, Reply, Request};

/// How long the registry may take to listen.
const START_TIME: Duration = Duration::from_secs(30);
/// The user that may sign in.
pub const USER: &str = "somebody";
/// The password of that user.
pub const PASSWORD: &str = "a password: with signs";

/// The file of the authority's certificate.
const AUTHORITY: &str = "authority.pem";

/// A running registry, ended when it is dropped.
pub struct Distribution {
    folder: TempDir,
    process: Child,
    _other: Other,
    port: u16,
    /// The server of tokens, if that is how one signs in.
    pub tokens: Option<Registry>,
}

impl Distribution {
    /// A registry that lets anybody in.
    pub fn open() -> Distribution {
        Distribution::start(|_| (String::new(), None))
    }

    /// A registry with a password file.
    pub fn with_password() -> Distribution {
        Distribution::start(|folder| {
            let output = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output();
            let output = output.expect("apache2-utils is installed by `make setup`");
            fs::write(folder.join("htpasswd"), output.stdout).expect("the folder can be written");
            let path = folder.join("htpasswd");
            (format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", path.display()), None)
        })
    }

    /// A registry that sends its users to a token server.
    pub fn with_tokens() -> Distribution {
        Distribution::start(|folder| {
            let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
            openssl(
                &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests", "-keyout"],
                &[&key.to_string_lossy(), "-out", &certificate.to_string_lossy()],
            );
            let text = fs::read_to_string(&certificate).expect("openssl wrote it");
            let chain: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            let tokens = Registry::with(move |request, _| Some(give_token(request, &key, &chain)));
            let auth = format!(
                "auth:\n  token:\n    realm: {}/token\n    service: tests\n    issuer: tests\n    rootcertbundle: {}\n",
                tokens.url(),
                certificate.display()
            );
            (auth, Some(tokens))
        })
    }

    /// A registry that speaks TLS, with a certificate of an authority that nobody knows.
    pub fn with_tls() -> Distribution {
        Distribution::start(|folder| {
            let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
            let new =
                ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
            let (authority, authority_key) = (path(AUTHORITY), path("authority-key.pem"));
            openssl(&new, &["-subj", "/CN=tests", "-keyout", &authority_key, "-out", &authority]);
            let (certificate, key) = (path("tls.pem"), path("tls-key.pem"));
            let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
            let signed = ["-CA", &authority, "-CAkey", &authority_key, "-subj", "/CN=127.0.0.1"];
            openssl(&new, &[&names[..], &signed, &["-keyout", &key, "-out", &certificate]].concat());
            (format!("  tls:\n    certificate: {certificate}\n    key: {key}\n"), None)
        })
    }

    /// The certificate of the authority that vouches for a registry with TLS.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join(AUTHORITY)
    }

    fn start(prepare: impl FnOnce(&Path) -> (String, Option<Registry>)) -> Distribution {
        let folder = TempDir::with_prefix("ampoule-registry-").expect("the temporary folder can be written");
        let (auth, tokens) = prepare(folder.path());
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
             http:\n  addr: 127.0.0.1:{port}\n  secret: tests\n{auth}",
            folder.path().join("data").display()
        );
        let file = folder.path().join("config.yml");
        fs::write(&file, config).expect("the folder can be written");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("the folder can be written"))
            .spawn()
            .expect("docker-registry is installed by `make setup`");
        let registry = Distribution { folder, _other: Other::is(process.id()), process, port, tokens };
        let deadline = Instant::now() + patience(START_TIME);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen\n{}", registry.log());
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn openssl(arguments: &[&str], more: &[&str]) {
    let output = Command::new("openssl").args(arguments).args(more).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A token for whatever was asked for, when user and password are right.
fn give_token(request: &Request, key: &Path, chain: &str) -> Reply {
    if request.basic() != Some((USER.to_owned(), PASSWORD.to_owned())) {
        return Reply::new(401);
    }
    let access: Vec<Value> = request
        .values("scope")
        .iter()
        .flat_map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [chain]});
    let claims = json!({
        "iss": "tests", "sub": USER, "aud": "tests", "exp": now + 300, "nbf": now - 10, "iat": now, "jti": now.to_string(),
        "access": access,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&head), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes(), key));
    Reply::json(&json!({"token": format!("{signed}.{signature}"), "expires_in": 300}))
}

fn sign(bytes: &[u8], key: &Path) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().expect("it is piped").write_all(bytes).expect("openssl reads");
    child.wait_with_output().expect("openssl ends").stdout
}

/// The header that says who asks, as Docker's clients write it.
pub fn login(value: &Value) -> String {
    STANDARD.encode(value.to_string())
}
