//! The config of an image that is being made: that of its base, changed step by step. What the base has and nobody here
//! knows is kept as it is.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Build;
use super::stage::Tree;
use crate::builder::plan::{Action, HealthcheckAction, Step};
use crate::image::manifest::own_platform;
use crate::spec::DEFAULT_PATH;

/// Says in the history who made a step.
const COMMENT: &str = "ampoule";

/// A config while it is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    /// How the image wants to be run, in Docker's terms.
    run: Map<String, Value>,
    author: Option<String>,
    variant: Option<Value>,
    history: Vec<Value>,
    /// How old the youngest thing is that it tells of.
    pub(super) created: Option<Timestamp>,
    /// Whether this stage has set the command, so that an entry point does not take it away.
    has_command: bool,
}

impl Config {
    /// Reads that of an image.
    ///
    /// # Errors
    /// Bytes that are no config.
    pub(super) fn read(bytes: &[u8]) -> Result<Config, serde_json::Error> {
        let mut whole: Map<String, Value> = serde_json::from_slice(bytes)?;
        let object = |value: Option<Value>| match value {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let history = match whole.remove("history") {
            Some(Value::Array(history)) => history,
            _ => Vec::new(),
        };
        Ok(Config {
            run: object(whole.remove("config")),
            author: whole.get("author").and_then(Value::as_str).map(str::to_owned),
            variant: whole.remove("variant").filter(|variant| !variant.is_null()),
            history,
            created: whole.get("created").and_then(Value::as_str).and_then(|text| text.parse().ok()),
            has_command: false,
        })
    }

    /// What a stage on top of this begins with: triggers have had their time.
    pub(super) fn as_base(&self) -> Config {
        let mut base = Config { has_command: false, ..self.clone() };
        base.run.remove("OnBuild");
        base
    }

    /// Notes what a step does to the image, and that it was done. `created` is absent for what has no time of its own:
    /// that is as old as what came before, or else as what comes next, so that known steps give the same image again.
    pub(super) fn apply(&mut self, step: &Step, has_layer: bool, created: Option<Timestamp>) {
        self.set(&step.action);
        self.created = created.or(self.created);
        let mut entry = Map::new();
        entry.insert("created_by".to_owned(), json!(step.text));
        entry.insert("comment".to_owned(), json!(COMMENT));
        if !has_layer {
            entry.insert("empty_layer".to_owned(), json!(true));
        }
        self.history.push(Value::Object(entry));
        if let Some(created) = self.created {
            self.date_history(created);
        }
    }

    /// Dates what of the history has no date.
    fn date_history(&mut self, created: Timestamp) {
        let undated = self.history.iter_mut().filter_map(Value::as_object_mut).filter(|it| !it.contains_key("created"));
        undated.for_each(|entry| drop(entry.insert("created".to_owned(), json!(created.to_string()))));
    }

    fn set(&mut self, action: &Action) {
        match action {
            Action::Run(_) | Action::Copy(_) | Action::Arguments(_) => {}
            Action::Workdir(path) => self.put("WorkingDir", json!(without_slash(path))),
            Action::Environment(pairs) => {
                let mut env = self.list("Env");
                if env.is_empty() && !pairs.iter().any(|(name, _)| name == "PATH") {
                    env.push(default_path());
                }
                for (name, value) in pairs {
                    let pair = json!(format!("{name}={value}"));
                    let is_it = |old: &Value| old.as_str().is_some_and(|old| old.split('=').next() == Some(name));
                    match env.iter().position(is_it) {
                        Some(at) => env[at] = pair,
                        None => env.push(pair),
                    }
                }
                self.put("Env", Value::Array(env));
            }
            Action::Labels(pairs) => self.add_labels(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
            Action::User(user) => self.put("User", json!(user)),
            Action::Shell(words) => self.put("Shell", json!(words)),
            Action::Expose(ports) => self.add_keys("ExposedPorts", ports),
            Action::Volumes(paths) => self.add_keys("Volumes", paths),
            Action::StopSignal(signal) => self.put("StopSignal", json!(signal)),
            Action::Healthcheck(probe) => self.put("Healthcheck", healthcheck(probe)),
            Action::Onbuild(text) => {
                let mut triggers = self.list("OnBuild");
                triggers.push(json!(text));
                self.put("OnBuild", Value::Array(triggers));
            }
            Action::Entrypoint(words) => {
                self.put("Entrypoint", json!(words));
                if !self.has_command {
                    self.run.remove("Cmd");
                }
            }
            Action::Cmd(words) => {
                self.put("Cmd", json!(words));
                self.has_command = true;
            }
            Action::Author(author) => self.author = Some(author.clone()),
        }
    }

    /// What Docker begins with when there is no base.
    pub(super) fn of_scratch() -> Config {
        let mut config = Config::default();
        config.put("WorkingDir", json!("/"));
        config
    }

    pub(super) fn add_labels<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut labels = self.object("Labels");
        labels.extend(pairs.map(|(name, value)| (name.to_owned(), json!(value))));
        if !labels.is_empty() {
            self.put("Labels", Value::Object(labels));
        }
    }

    /// The user that was set last, here or in a base; empty for none.
    pub(super) fn user(&self) -> &str {
        self.run.get("User").and_then(Value::as_str).unwrap_or_default()
    }

    fn add_keys(&mut self, field: &str, keys: &[String]) {
        let mut all = self.object(field);
        all.extend(keys.iter().map(|key| (key.clone(), json!({}))));
        self.put(field, Value::Object(all));
    }

    fn put(&mut self, field: &str, value: Value) {
        self.run.insert(field.to_owned(), value);
    }

    fn list(&self, field: &str) -> Vec<Value> {
        self.run.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    }

    fn object(&self, field: &str) -> Map<String, Value> {
        self.run.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
    }
}

/// The environment of an image that has none.
fn default_path() -> Value {
    json!(format!("PATH={DEFAULT_PATH}"))
}

fn without_slash(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/" } else { trimmed }
}

fn healthcheck(probe: &HealthcheckAction) -> Value {
    let mut value = Map::new();
    value.insert("Test".to_owned(), json!(probe.test));
    let numbers = [
        ("Interval", probe.interval_nanos),
        ("Timeout", probe.timeout_nanos),
        ("StartPeriod", probe.start_period_nanos),
        ("StartInterval", probe.start_interval_nanos),
        ("Retries", u64::from(probe.retries)),
    ];
    // Nothing is said of what keeps its default.
    let said = numbers.into_iter().filter(|(_, number)| *number != 0);
    value.extend(said.map(|(name, number)| (name.to_owned(), json!(number))));
    Value::Object(value)
}

/// The bytes of a finished config. Keys are in the order of their names, so that equal configs are equal bytes.
pub(super) fn finish(tree: &Tree, build: &Build) -> Vec<u8> {
    let mut config = tree.config.clone();
    config.add_labels(build.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    if config.list("Env").is_empty() {
        config.put("Env", json!([default_path()]));
    }
    let (os, architecture) =
        own_platform().split_once('/').map(|(os, arch)| (os.to_owned(), arch.to_owned())).unwrap_or_default();
    let diff_ids: Vec<String> = tree.layers.iter().map(|layer| format!("sha256:{}", layer.layer.hex())).collect();
    let created = build.date().or(config.created).unwrap_or_else(Timestamp::now);
    config.date_history(created);
    let mut whole = Map::new();
    whole.insert("architecture".to_owned(), json!(architecture));
    whole.insert("os".to_owned(), json!(os));
    whole.insert("created".to_owned(), json!(created.to_string()));
    whole.insert("config".to_owned(), Value::Object(config.run));
    whole.insert("history".to_owned(), Value::Array(config.history));
    whole.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
    whole.extend(config.author.map(|author| ("author".to_owned(), json!(author))));
    whole.extend(config.variant.map(|variant| ("variant".to_owned(), variant)));
    Value::Object(whole).to_string().into_bytes()
}
