//! A service in a folder that vanishes, and a client for it. When it is dropped, no job may be left.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ampoule_api::app::App;
use ampoule_api::config::{Config, Flags};
use ampoule_api::router::{Entrance, router};
use ampoule_api::state::State;
use ampoule_client::types::{Job, JobState, Problem};
use ampoule_engine::image::layer::Skipped;
use ampoule_engine::runtime::scripted::{Scene, Scripted};
use ampoule_engine::runtime::{Census, Input, Pending, Running, Runtime, RuntimeError, Unpacked};
use ampoule_engine::spec::{Ending, LayerId, SandboxSpec};
use ampoule_plugins::Policies;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tower::ServiceExt;

/// The image that every service of these tests has.
pub(crate) const IMAGE: &str = "busybox:1";
/// Longer than any test: for jobs that are stopped.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

/// A scripted runtime that unpacks layers as far as their digests go, and is gone when that is set.
pub(crate) struct Stage(pub(crate) Scripted, pub(crate) AtomicBool);

impl Runtime for Stage {
    fn launch(&self, spec: SandboxSpec, input: Input) -> Pending<'_, Result<Running, RuntimeError>> {
        if self.1.load(Ordering::Relaxed) {
            return Box::pin(async { Err(RuntimeError::Gone) });
        }
        self.0.launch(spec, input)
    }

    fn unpack_layer(&self, mut archive: File) -> Pending<'_, Result<Unpacked, RuntimeError>> {
        Box::pin(async move {
            let mut bytes = Vec::new();
            archive.read_to_end(&mut bytes).expect("the archive is readable");
            let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(Unpacked {
                layer: LayerId::parse(&hex)?,
                tar_bytes: bytes.len() as u64,
                entries: 1,
                skipped: Skipped::default(),
            })
        })
    }

    fn remove_layer(&self, layer: LayerId) -> Pending<'_, Result<(), RuntimeError>> {
        self.0.remove_layer(layer)
    }

    fn census(&self) -> Census {
        self.0.census()
    }
}

/// A command that prints and returns.
pub(crate) fn prints(stdout: impl Into<Vec<u8>>) -> Scene {
    Scene { stdout: stdout.into(), stderr: Vec::new(), lasts: Duration::ZERO, ending: Ending::Exited(0) }
}

/// A command that goes on until it is stopped.
pub(crate) fn goes_on() -> Scene {
    Scene { lasts: FOREVER, ..prints("") }
}

/// A run that the infrastructure spoils.
pub(crate) fn fails() -> Scene {
    let ending = Ending::Failed { reason: "the machine hiccuped".to_owned(), retryable: true };
    Scene { ending, ..prints("half a line") }
}

/// A service.
pub(crate) struct Service {
    pub(crate) app: App,
    pub(crate) runtime: Arc<Stage>,
    pub(crate) folder: Arc<TempDir>,
    unix: Router,
    tcp: Router,
}

/// What a request got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn job(&self) -> Job {
        self.json()
    }

    /// The problem document, which is complete.
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status.as_u16());
        assert_eq!(problem.request_id.as_deref(), self.headers["x-request-id"].to_str().ok());
        problem
    }
}

impl Service {
    /// A service that plays these scenes, with one slot and room for two waiting jobs.
    pub(crate) async fn with(scenes: impl IntoIterator<Item = Scene>) -> Service {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let service = Service::open(folder, "concurrency = 1\nqueue = 2\n", scenes).await;
        service.import_image().await;
        service
    }

    /// A service on a folder that may have been used before.
    pub(crate) async fn open(folder: Arc<TempDir>, settings: &str, scenes: impl IntoIterator<Item = Scene>) -> Service {
        Service::open_with(folder, settings, scenes, Policies::empty()).await
    }

    /// A service that asks one policy, which always gives this answer.
    pub(crate) async fn with_policy(answer: &str) -> Service {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let wasm = wat::parse_str(policy(answer)).expect("a module");
        std::fs::write(folder.path().join("policy.wasm"), wasm).expect("a file");
        let binding = folder.path().join("policies.toml");
        let text = "[[policy]]\nname = \"house-rules\"\nfile = \"policy.wasm\"\nhooks = [\"admission\"]\n";
        std::fs::write(&binding, text).expect("a file");
        let policies = Policies::load(&binding, &folder.path().join("cache")).expect("the policy is bound");
        let service = Service::open_with(folder, "concurrency = 1\n", [prints("ran")], policies).await;
        service.import_image().await;
        service
    }

    async fn open_with(
        folder: Arc<TempDir>,
        settings: &str,
        scenes: impl IntoIterator<Item = Scene>,
        policies: Policies,
    ) -> Service {
        let file = folder.path().join("ampoule.toml");
        std::fs::write(&file, settings).expect("a file");
        let state = folder.path().join("state");
        std::fs::create_dir_all(&state).expect("a folder");
        let flags = Flags { config: Some(file), state: Some(state), ..Flags::default() };
        let config = Config::load(&flags).expect("settings");
        let runtime = Arc::new(Stage(Scripted::new(scenes), AtomicBool::new(false)));
        let database = State::open(&config.state).expect("a database");
        let draining = Arc::new(AtomicBool::new(false));
        let app = App::open(&config, &database, runtime.clone(), Arc::new(policies), draining).await;
        let app = app.expect("opens");
        app.desk.jobs.dispatch();
        let (unix, tcp) = (router(app.clone(), Entrance::Unix), router(app.clone(), Entrance::Tcp));
        Service { app, runtime, folder, unix, tcp }
    }

    async fn import_image(&self) {
        let request = Request::post(format!("/v1/images/import?name={IMAGE}")).body(Body::from(root_tar()));
        let answer = self.send(request.expect("a request"), Entrance::Unix).await;
        assert!(answer.status.is_success(), "{answer:?}");
    }

    pub(crate) async fn send(&self, request: Request<Body>, entrance: Entrance) -> Answer {
        let router = if entrance == Entrance::Unix { &self.unix } else { &self.tcp };
        let response = router.clone().oneshot(request).await.expect("routes do not fail");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.send(request.body(body).expect("a request"), Entrance::Unix).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Hands in `echo` with more fields.
    pub(crate) async fn submit(&self, query: &str, fields: Value) -> Answer {
        self.post(&format!("/v1/jobs{query}"), order(fields)).await
    }

    /// Waits for the end of a job.
    pub(crate) async fn end_of(&self, id: &str) -> Job {
        let job = self.get(&format!("/v1/jobs/{id}?wait=20")).await.job();
        assert_eq!(job.state, JobState::Ended, "{job:?}");
        job
    }

    /// Waits until a job is in its sandbox.
    pub(crate) async fn start_of(&self, id: &str) {
        let asked = || self.runtime.0.asked().iter().any(|spec| spec.id == id);
        tokio::time::timeout(Duration::from_secs(20), async {
            while !asked() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .expect("the job starts");
    }

    /// What a kill -9 at this moment would leave: the state folder as it is on disk.
    pub(crate) fn killed(&self) -> Arc<TempDir> {
        let copy = tempfile::tempdir().expect("a folder");
        copy_tree(&self.folder.path().join("state"), &copy.path().join("state"));
        Arc::new(copy)
    }

    /// Stops everything that still runs or waits.
    pub(crate) async fn cancel_all(&self) {
        for state in ["queued", "running"] {
            let list: Value = self.get(&format!("/v1/jobs?state={state}")).await.json();
            for job in list["jobs"].as_array().expect("a list") {
                let id = job["id"].as_str().expect("an id");
                self.post(&format!("/v1/jobs/{id}/cancel"), json!(null)).await;
                self.end_of(id).await;
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let (waiting, running) = self.app.desk.jobs.count();
        if !std::thread::panicking() {
            assert_eq!((waiting, running), (0, 0), "jobs are left at the end of a test");
        }
    }
}

/// A request for `echo` with more fields.
pub(crate) fn order(fields: Value) -> Value {
    let mut order = json!({ "image": IMAGE, "argv": ["echo"] });
    let (Some(order_fields), Some(fields)) = (order.as_object_mut(), fields.as_object()) else { return order };
    order_fields.extend(fields.clone());
    order
}

/// A policy that writes this JSON whatever it is asked.
fn policy(answer: &str) -> String {
    let (escaped, length) = (answer.bytes().map(|byte| format!("\\{byte:02x}")).collect::<String>(), answer.len());
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 1024) "{escaped}")
            (func (export "_start")
                (i32.store (i32.const 0) (i32.const 1024))
                (i32.store (i32.const 4) (i32.const {length}))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#
    )
}

/// A root file system with one file.
fn root_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/echo", &b"#!\n"[..]).expect("appends");
    tar.into_inner().expect("finishes")
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            let content = std::fs::read(entry.path()).expect("a file");
            File::create(target).expect("a file").write_all(&content).expect("written");
        }
    }
}
