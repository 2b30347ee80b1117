//! The options of `RUN --mount`: comma-separated pairs, in which values may hold variables.

use serde::{Deserialize, Serialize};

use crate::builder::source::{Complaint, Word};
use crate::builder::suggest::closest;

/// Longest id of a cache, a secret or an agent.
const ID_BYTES_MAX: usize = 255;
/// Most options of one mount.
const OPTIONS_MAX: usize = 32;
/// All options.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "size",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "env",
];

/// What a RUN has besides the stage's files, every option settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Mount {
    /// A folder or file of the context, a stage or an image; writes are dropped afterwards.
    Bind {
        /// The stage, image or named context; the context itself without it.
        from: Option<String>,
        /// Path in it.
        source: String,
        /// Path in the sandbox.
        target: String,
        /// Whether it can be written to.
        read_only: bool,
    },
    /// A folder that outlives the build.
    Cache {
        /// Its name; the target without it. It is a name, never a path.
        id: String,
        /// Path in the sandbox.
        target: String,
        /// How concurrent builds use it.
        sharing: Sharing,
        /// What it starts with.
        from: Option<String>,
        /// Path in that.
        source: String,
        /// Whether it can be written to.
        read_only: bool,
        /// Mode of its root when it is made.
        mode: u32,
        /// Owner of its root when it is made.
        uid: u32,
        /// Group of its root when it is made.
        gid: u32,
    },
    /// An empty folder in memory.
    Tmpfs {
        /// Path in the sandbox.
        target: String,
        /// Most bytes in it.
        size_bytes: Option<u64>,
    },
    /// A secret that is in no layer, no history, no key and no log.
    Secret {
        /// Its name.
        id: String,
        /// File that shows it.
        target: Option<String>,
        /// Variable that holds it.
        env: Option<String>,
        /// Whether the build fails without it.
        required: bool,
        /// Mode of the file.
        mode: u32,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// The socket of an SSH agent.
    Ssh {
        /// Name of the agent.
        id: String,
        /// Path of the socket.
        target: Option<String>,
        /// Whether the build fails without it.
        required: bool,
        /// Mode of the socket.
        mode: u32,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

/// How concurrent builds use a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Together.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// The options as they come, before it is known which go together.
#[derive(Default)]
struct Options {
    kind: Option<String>,
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    required: Option<bool>,
    size_bytes: Option<u64>,
    id: Option<String>,
    sharing: Option<Sharing>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

/// Resolves the variables in a value.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Result<String, String>;

impl Mount {
    /// Its type, as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            Mount::Bind { .. } => "bind",
            Mount::Cache { .. } => "cache",
            Mount::Tmpfs { .. } => "tmpfs",
            Mount::Secret { .. } => "secret",
            Mount::Ssh { .. } => "ssh",
        }
    }

    /// Reads the value of a `--mount` flag.
    ///
    /// # Errors
    /// An option that there is not, a value that it cannot have, options that do not go together.
    pub fn parse(word: &Word, resolve: Resolve) -> Result<Mount, Complaint> {
        let complain = |(problem, hint): Problem| {
            let complaint = Complaint::new(word.span, problem);
            if hint.is_empty() { complaint } else { complaint.hint(hint) }
        };
        let mut options = Options::default();
        let fields = fields(&word.value).map_err(complain)?;
        // The kind decides what the others mean, wherever it stands.
        for field in fields.iter().filter(|field| key_of(field) == "type") {
            options.set(field, resolve).map_err(complain)?;
        }
        for field in fields.iter().filter(|field| key_of(field) != "type") {
            options.set(field, resolve).map_err(complain)?;
        }
        options.finish().map_err(complain)
    }

    /// The stage, image or context that it names.
    pub fn from(&self) -> Option<&str> {
        match self {
            Mount::Bind { from, .. } | Mount::Cache { from, .. } => from.as_deref(),
            _ => None,
        }
    }

    /// Where it appears in the sandbox, when that is told.
    pub fn target(&self) -> Option<&str> {
        match self {
            Mount::Bind { target, .. } | Mount::Cache { target, .. } | Mount::Tmpfs { target, .. } => Some(target),
            Mount::Secret { target, .. } | Mount::Ssh { target, .. } => target.as_deref(),
        }
    }
}

/// What is wrong, and a hint or nothing.
type Problem = (String, String);

fn problem<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Problem> {
    Err((message.into(), hint.into()))
}

fn key_of(field: &str) -> String {
    field.split('=').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Splits at commas; a field between double quotes may hold them, and two quotes for one.
fn fields(text: &str) -> Result<Vec<String>, Problem> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let field = rest[..end].to_owned();
                rest = &rest[end..];
                field
            }
            Some(quoted) => {
                let mut field = String::new();
                let mut after = quoted;
                loop {
                    let Some(end) = after.find('"') else { return problem("a double quote (\") is not closed", "") };
                    field.push_str(&after[..end]);
                    after = &after[end + 1..];
                    let Some(more) = after.strip_prefix('"') else { break };
                    field.push('"');
                    after = more;
                }
                rest = after;
                field
            }
        };
        fields.push(field);
        if fields.len() > OPTIONS_MAX {
            return problem(format!("the mount has more than {OPTIONS_MAX} options"), "");
        }
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return problem("a comma must follow on a closing double quote (\")", ""),
        }
    }
}

impl Options {
    fn set(&mut self, field: &str, resolve: Resolve) -> Result<(), Problem> {
        let key = key_of(field);
        let Some((_, value)) = field.split_once('=') else { return self.set_switch(&key, field) };
        if key == "from" && value.contains('$') {
            return problem(
                "`from` of a mount takes no variables",
                "name the image in a stage of its own, as in `FROM image:${VERSION} AS tools`",
            );
        }
        let value = resolve(value).map_err(|message| (message, String::new()))?;
        match key.as_str() {
            "type" => self.kind = Some(value.to_ascii_lowercase()),
            "from" => self.from = Some(value),
            "source" | "src" => self.source = Some(value),
            "target" | "dst" | "destination" => self.target = Some(value),
            "readonly" | "ro" => self.read_only = Some(boolean(&key, &value)?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(&key, &value)?),
            "required" => self.required = Some(boolean(&key, &value)?),
            "size" => self.size_bytes = Some(size(&value)?),
            "id" if value.len() > ID_BYTES_MAX => {
                return problem(format!("the id has more than {ID_BYTES_MAX} bytes"), "");
            }
            "id" => self.id = Some(value),
            "sharing" => self.sharing = Some(sharing(&value)?),
            "mode" => self.mode = Some(number(&key, &value, 8)?),
            "uid" => self.uid = Some(number(&key, &value, 10)?),
            "gid" => self.gid = Some(number(&key, &value, 10)?),
            "env" => self.env = Some(value),
            _ => return unknown(&key),
        }
        Ok(())
    }

    /// An option without a value.
    fn set_switch(&mut self, key: &str, field: &str) -> Result<(), Problem> {
        match key {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => self.required = Some(true),
            _ if KEYS.contains(&key) => {
                return problem(format!("`{key}` of a mount needs a value"), format!("as in {key}=VALUE"));
            }
            _ if field.is_empty() => return problem("an option of the mount is empty", "remove the comma"),
            _ => return unknown(key),
        }
        Ok(())
    }

    fn finish(self) -> Result<Mount, Problem> {
        let kind = self.kind.clone().unwrap_or_else(|| "bind".to_owned());
        let (read_only, source) = (self.read_only, self.source.clone());
        match kind.as_str() {
            "bind" => {
                self.refuse(&kind, &["mode", "uid", "gid", "size", "required", "sharing", "env", "id"])?;
                let target = self.target()?;
                let source = source.unwrap_or_else(|| "/".to_owned());
                Ok(Mount::Bind { from: self.from, source, target, read_only: read_only.unwrap_or(true) })
            }
            "cache" => {
                self.refuse(&kind, &["size", "required", "env"])?;
                let target = self.target()?;
                Ok(Mount::Cache {
                    id: self.id.filter(|id| !id.is_empty()).unwrap_or_else(|| target.clone()),
                    target,
                    sharing: self.sharing.unwrap_or_default(),
                    from: self.from,
                    source: source.unwrap_or_else(|| "/".to_owned()),
                    read_only: read_only.unwrap_or(false),
                    mode: self.mode.unwrap_or(0o755),
                    uid: self.uid.unwrap_or(0),
                    gid: self.gid.unwrap_or(0),
                })
            }
            "tmpfs" => {
                self.refuse(&kind, &["mode", "uid", "gid", "required", "sharing", "env", "from", "source", "id"])?;
                Ok(Mount::Tmpfs { target: self.target()?, size_bytes: self.size_bytes })
            }
            "secret" => self.secret(),
            "ssh" => {
                self.refuse(&kind, &["size", "sharing", "env", "from", "source"])?;
                Ok(Mount::Ssh {
                    id: self.id.unwrap_or_else(|| "default".to_owned()),
                    target: self.target,
                    required: self.required.unwrap_or(false),
                    mode: self.mode.unwrap_or(0o600),
                    uid: self.uid.unwrap_or(0),
                    gid: self.gid.unwrap_or(0),
                })
            }
            other => {
                let kinds = ["bind", "cache", "tmpfs", "secret", "ssh"];
                let hint = closest(other, kinds)
                    .map_or_else(|| format!("there are {}", kinds.join(", ")), |kind| format!("did you mean {kind}?"));
                problem(format!("`{other}` is no type of mount"), hint)
            }
        }
    }

    fn secret(self) -> Result<Mount, Problem> {
        self.refuse("secret", &["size", "sharing", "from"])?;
        if self.id.is_some() && self.source.is_some() {
            return problem("a secret has an id or a source, not both", "they mean the same");
        }
        let from_target = || self.target.as_ref().and_then(|target| target.rsplit('/').next()).map(str::to_owned);
        let id = self.id.clone().or_else(|| self.source.clone()).or_else(from_target).filter(|id| !id.is_empty());
        let Some(id) = id else { return problem("the secret has no id", "as in --mount=type=secret,id=token") };
        // Without a target it is a file, unless it is asked for as a variable.
        let default_target =
            || self.env.is_none().then(|| format!("/run/secrets/{}", id.rsplit('/').next().unwrap_or(&id)));
        Ok(Mount::Secret {
            target: self.target.clone().or_else(default_target),
            env: self.env.clone().map(|env| if env.is_empty() { id.clone() } else { env }),
            id,
            required: self.required.unwrap_or(false),
            mode: self.mode.unwrap_or(0o400),
            uid: self.uid.unwrap_or(0),
            gid: self.gid.unwrap_or(0),
        })
    }

    fn target(&self) -> Result<String, Problem> {
        match &self.target {
            Some(target) if !target.trim_matches('/').is_empty() => Ok(target.clone()),
            Some(_) => problem("the target of a mount is the root", "choose a folder below it"),
            None => problem("the mount has no target", "as in target=/path"),
        }
    }

    /// Complains of options that a kind does not have.
    fn refuse(&self, kind: &str, keys: &[&str]) -> Result<(), Problem> {
        let is_set = |key: &&&str| match **key {
            "mode" => self.mode.is_some(),
            "uid" => self.uid.is_some(),
            "gid" => self.gid.is_some(),
            "size" => self.size_bytes.is_some(),
            "required" => self.required.is_some(),
            "sharing" => self.sharing.is_some(),
            "env" => self.env.is_some(),
            "from" => self.from.is_some(),
            "source" => self.source.is_some(),
            _ => self.id.is_some(),
        };
        match keys.iter().find(is_set) {
            Some(key) => problem(format!("a {kind} mount has no `{key}`"), ""),
            None => Ok(()),
        }
    }
}

fn unknown<T>(key: &str) -> Result<T, Problem> {
    let key: String = key.chars().take(60).collect();
    let hint = closest(&key, KEYS).map(|meant| format!("did you mean {meant}?"));
    problem(format!("`{key}` is no option of a mount"), hint.unwrap_or_default())
}

fn boolean(key: &str, value: &str) -> Result<bool, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => problem(format!("`{key}` of a mount is either true or false"), ""),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, Problem> {
    match u32::from_str_radix(value, radix) {
        Ok(number) if !value.starts_with('+') && (key != "mode" || number <= 0o7777) => Ok(number),
        _ if radix == 8 => problem(format!("`{key}` of a mount is no octal number up to 7777"), "as in mode=0755"),
        _ => problem(format!("`{key}` of a mount is no number"), ""),
    }
}

fn sharing(value: &str) -> Result<Sharing, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        _ => problem("a cache is not shared that way", "there are shared, private and locked"),
    }
}

/// `64m`, `1.5GiB`, `100`: units are powers of 1024.
fn size(value: &str) -> Result<u64, Problem> {
    let text = value.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let factor: f64 = match text[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => -1.0,
    };
    match text[..digits].parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        Ok(number) if factor > 0.0 && number * factor < 9e18 => Ok((number * factor) as u64),
        _ => problem("the size of a mount is no number of bytes", "as in size=64m"),
    }
}

/// The value of `from` in a `--mount` flag that was not read yet; it takes no variables.
pub fn from_of(word: &Word) -> Option<Word> {
    let fields = fields(&word.value).ok()?;
    let from = fields.iter().find(|field| key_of(field) == "from" && field.contains('='))?;
    let (_, value) = from.split_once('=')?;
    Some(Word::new(value.to_owned(), word.span))
}
