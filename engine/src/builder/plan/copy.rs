//! COPY and ADD: sources, destination and what a step depends on; and how actions read.

use std::fmt::Write as _;

use super::action::{Action, CopyAction, CopyFrom, Input, MountAction, Origin, RunAction, Step};
use super::mode::Mode;
use super::stages::complaint_of;
use super::steps::{At, Planner, State, absolute};
use crate::builder::dockerfile::mount::Mount;
use crate::builder::dockerfile::{Copy, CopySource};
use crate::builder::expand::Rules;
use crate::builder::ignore::Ignore;
use crate::builder::source::{Complaint, Spanned, Word};
use crate::image::digest::Digest;

/// Longest command that a step's text shows.
const TEXT_BYTES_MAX: usize = 4096;

impl Planner<'_> {
    pub(super) fn copy(&mut self, at: At, state: &State, copy: &Copy, is_add: bool) -> Result<Action, Complaint> {
        let platform = &self.graph.nodes[at.stage].platform;
        let from = match &copy.from {
            Some(word) => self.graph.origin(word, platform).map_err(|complaint| at.point(complaint))?,
            None => Origin::Context,
        };
        let mut sources = Vec::new();
        for (source, number) in copy.sources.iter().zip(numbers(&copy.sources)) {
            sources.push(self.source(at, state, source, number, is_add)?);
        }
        let destination = self.expand(at, state, &copy.destination)?.text;
        if destination.is_empty() {
            return Err(at.complain(copy.destination.span, "the destination is empty".to_owned()));
        }
        let mut exclude = Vec::new();
        for pattern in &copy.exclude {
            let text = self.expand(at, state, pattern)?.text;
            Ignore::parse(&text)
                .map_err(|error| at.complain(pattern.span, format!("the pattern of --exclude {}", error.problem)))?;
            exclude.push(text);
        }
        let checksum = match &copy.checksum {
            Some(word) => Some(self.checksum(at, state, word, &sources)?),
            None => None,
        };
        Ok(Action::Copy(Box::new(CopyAction {
            is_add,
            from,
            sources,
            destination: with_slash(&destination, absolute(&state.working_dir, &destination)),
            chown: self.optional(at, state, copy.chown.as_ref())?.filter(|owner| !owner.is_empty()),
            chmod: self.mode(at, state, copy.chmod.as_ref())?,
            link: is_on(copy.link.as_ref()),
            parents: is_on(copy.parents.as_ref()),
            exclude,
            checksum,
            keep_git_dir: is_on(copy.keep_git_dir.as_ref()),
            unpack: copy.unpack.as_ref().map(|unpack| unpack.value),
        })))
    }

    fn optional(&mut self, at: At, state: &State, word: Option<&Word>) -> Result<Option<String>, Complaint> {
        word.map(|word| self.expand(at, state, word).map(|expanded| expanded.text)).transpose()
    }

    fn mode(&mut self, at: At, state: &State, word: Option<&Word>) -> Result<Option<Mode>, Complaint> {
        let Some(word) = word else { return Ok(None) };
        let text = self.expand(at, state, word)?.text;
        let mode = Mode::parse(&text).map_err(|error| at.point(complaint_of(word.span, &error.to_string())))?;
        Ok(Some(mode))
    }

    fn source(
        &mut self,
        at: At,
        state: &State,
        source: &CopySource,
        number: usize,
        is_add: bool,
    ) -> Result<CopyFrom, Complaint> {
        let word = match source {
            CopySource::Path(word) => word,
            CopySource::Heredoc(_) => return self.inline(at, state, number),
        };
        let text = self.expand(at, state, word)?.text;
        if text.is_empty() {
            return Err(at
                .complain(word.span, "the source is empty".to_owned())
                .hint("give the variable in it a value; `.` is the whole context"));
        }
        if is_add && let Some(git) = git(&text) {
            return Ok(git);
        }
        let is_url = text.starts_with("http://") || text.starts_with("https://");
        match (is_url, is_add) {
            (true, true) => Ok(CopyFrom::Url(text)),
            (true, false) => {
                Err(at.complain(word.span, "COPY downloads nothing".to_owned()).hint("use ADD, with --checksum"))
            }
            (false, _) => Ok(CopyFrom::Path(text)),
        }
    }

    fn inline(&mut self, at: At, state: &State, number: usize) -> Result<CopyFrom, Complaint> {
        let Some(heredoc) = at.placed.instruction.heredocs.get(number) else {
            return Err(at.complain(at.placed.span, "a heredoc has no text".to_owned()));
        };
        let name = heredoc.name.clone();
        let content = heredoc.content();
        if !heredoc.expands {
            return Ok(CopyFrom::Inline { name, content });
        }
        let rules = Rules { ignore_quotes: true, ..Rules::default() };
        let word = Spanned::new(content, heredoc.body.span);
        let content = self.expand_with(at, state, &word, '\\', rules)?.text;
        Ok(CopyFrom::Inline { name, content })
    }

    fn checksum(&mut self, at: At, state: &State, word: &Word, sources: &[CopyFrom]) -> Result<String, Complaint> {
        let text = self.expand(at, state, word)?.text;
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match sources {
            [CopyFrom::Url(_)] if Digest::parse(&text).is_ok() => Ok(text),
            [CopyFrom::Git { .. }] if (4..=64).contains(&text.len()) && is_hex(&text) => Ok(text),
            [CopyFrom::Url(_)] => Err(at
                .complain(word.span, "the checksum is no digest".to_owned())
                .hint("as in sha256: with 64 hexadecimal digits")),
            [CopyFrom::Git { .. }] => Err(at
                .complain(word.span, "the checksum is no commit".to_owned())
                .hint("a commit is written in hexadecimal digits")),
            [_] => Err(at
                .complain(word.span, "only a download has a checksum".to_owned())
                .hint("what the context holds is known by its content already; remove the flag")),
            _ => Err(at
                .complain(word.span, "one checksum is for one source".to_owned())
                .hint("write an ADD for each of them")),
        }
    }
}

/// For each source, the number of heredocs before it.
fn numbers(sources: &[CopySource]) -> Vec<usize> {
    let mut count = 0;
    let number = |source: &CopySource| {
        let number = count;
        count += usize::from(matches!(source, CopySource::Heredoc(_)));
        number
    };
    sources.iter().map(number).collect()
}

fn is_on(flag: Option<&Spanned<bool>>) -> bool {
    flag.is_some_and(|flag| flag.value)
}

/// A destination that is a folder by how it is written stays one.
fn with_slash(written: &str, path: String) -> String {
    let is_folder = written.ends_with('/') || written == "." || written.ends_with("/.");
    if is_folder && !path.ends_with('/') { path + "/" } else { path }
}

/// A repository by its address: `https://host/x.git`, `git@host:x`, `git://…`, `ssh://…`, each with `#ref:folder`.
fn git(text: &str) -> Option<CopyFrom> {
    let (address, fragment) = text.split_once('#').map_or((text, None), |(address, rest)| (address, Some(rest)));
    let is_web = address.starts_with("http://") || address.starts_with("https://");
    let is_git = address.starts_with("git://")
        || address.starts_with("ssh://")
        || address.starts_with("git@") && address.contains(':')
        || is_web && address.split('?').next().unwrap_or_default().ends_with(".git");
    if !is_git {
        return None;
    }
    let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
    let (reference, folder) = match fragment.map(|fragment| fragment.split_once(':').unwrap_or((fragment, ""))) {
        Some((reference, folder)) => (part(reference), part(folder)),
        None => (None, None),
    };
    Some(CopyFrom::Git { remote: address.to_owned(), reference, folder })
}

impl Step {
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let pairs =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let own = match &self.action {
            Action::Run(run) => {
                let script = run.script.as_ref().map_or(0, |script| script.content.len());
                pairs(&run.environment) + run.argv.iter().map(String::len).sum::<usize>() + script
            }
            Action::Copy(copy) => copy
                .sources
                .iter()
                .map(|source| match source {
                    CopyFrom::Inline { content, .. } => content.len(),
                    CopyFrom::Path(text) | CopyFrom::Url(text) => text.len(),
                    CopyFrom::Git { remote, .. } => remote.len(),
                })
                .sum(),
            Action::Environment(set) | Action::Labels(set) => pairs(set),
            _ => 0,
        };
        own + self.text.len() + self.written.len()
    }
}

impl Action {
    /// Everything that its result depends on besides itself and the step before it.
    pub(super) fn inputs(&self) -> Vec<Input> {
        match self {
            Action::Copy(copy) => copy_inputs(copy),
            Action::Run(run) => run.mounts.iter().filter_map(mount_input).collect(),
            _ => Vec::new(),
        }
    }

    /// How it reads, for people and for the history of the image.
    pub(super) fn text(&self) -> String {
        match self {
            Action::Run(run) => run_text(run),
            Action::Copy(copy) => copy_text(copy),
            Action::Workdir(path) => format!("WORKDIR {path}"),
            Action::Arguments(arguments) => {
                let written = arguments.iter().map(|(name, value)| match value {
                    Some(value) => format!("{name}={value}"),
                    None => name.clone(),
                });
                format!("ARG {}", written.collect::<Vec<_>>().join(" "))
            }
            Action::Environment(pairs) => format!("ENV {}", pairs_text(pairs)),
            Action::Labels(pairs) => format!("LABEL {}", pairs_text(pairs)),
            Action::User(user) => format!("USER {user}"),
            Action::Shell(words) => format!("SHELL {}", json(words)),
            Action::Expose(ports) => format!("EXPOSE {}", ports.join(" ")),
            Action::Volumes(paths) => format!("VOLUME {}", json(paths)),
            Action::StopSignal(signal) => format!("STOPSIGNAL {signal}"),
            Action::Healthcheck(healthcheck) => format!("HEALTHCHECK {}", json(&healthcheck.test)),
            Action::Onbuild(trigger) => format!("ONBUILD {trigger}"),
            Action::Entrypoint(words) => format!("ENTRYPOINT {}", json(words)),
            Action::Cmd(words) => format!("CMD {}", json(words)),
            Action::Author(author) => format!("MAINTAINER {author}"),
        }
    }
}

/// The beginning of a long text.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

fn copy_inputs(copy: &CopyAction) -> Vec<Input> {
    let mut paths = Vec::new();
    let mut inputs = Vec::new();
    for source in &copy.sources {
        match source {
            CopyFrom::Path(path) => paths.push(path.clone()),
            CopyFrom::Inline { content, .. } => inputs.push(Input::Inline { digest: Digest::of(content.as_bytes()) }),
            CopyFrom::Url(url) => inputs.push(Input::Url { url: url.clone(), checksum: copy.checksum.clone() }),
            CopyFrom::Git { remote, reference, .. } => inputs.push(Input::Git {
                remote: remote.clone(),
                reference: reference.clone(),
                checksum: copy.checksum.clone(),
            }),
        }
    }
    if !paths.is_empty() {
        inputs.insert(0, files_of(&copy.from, paths, copy.exclude.clone()));
    }
    inputs
}

fn files_of(from: &Origin, sources: Vec<String>, exclude: Vec<String>) -> Input {
    match from {
        Origin::Context => Input::Files { context: None, sources, exclude },
        Origin::Named(name) => Input::Files { context: Some(name.clone()), sources, exclude },
        Origin::Stage(stage) => Input::Stage { stage: *stage, sources },
        Origin::Image(image) => Input::Image { image: image.clone(), sources },
    }
}

/// Caches, secrets and agents are no inputs: a result must not depend on what is in them. What a cache starts with is one.
fn mount_input(mount: &MountAction) -> Option<Input> {
    let (Mount::Bind { source, .. } | Mount::Cache { source, .. }) = &mount.mount else { return None };
    Some(files_of(mount.from.as_ref()?, vec![source.clone()], Vec::new()))
}

fn run_text(run: &RunAction) -> String {
    let mut text = "RUN ".to_owned();
    for mount in &run.mounts {
        let _ = write!(text, "--mount={} ", mount_text(&mount.mount));
    }
    match &run.script {
        Some(script) => text.push_str(&script.content),
        None => text.push_str(&run.argv.join(" ")),
    }
    text
}

fn mount_text(mount: &Mount) -> String {
    let kind = mount.kind();
    match (mount.target(), mount.from()) {
        (Some(target), Some(from)) => format!("type={kind},from={from},target={target}"),
        (Some(target), None) => format!("type={kind},target={target}"),
        (None, _) => format!("type={kind}"),
    }
}

fn copy_text(copy: &CopyAction) -> String {
    let mut text = if copy.is_add { "ADD ".to_owned() } else { "COPY ".to_owned() };
    match &copy.from {
        Origin::Context => {}
        Origin::Named(name) => text += &format!("--from={name} "),
        Origin::Stage(stage) => text += &format!("--from={stage} "),
        Origin::Image(image) => text += &format!("--from={} ", image.reference),
    }
    for source in &copy.sources {
        match source {
            CopyFrom::Path(path) | CopyFrom::Url(path) => text += path,
            CopyFrom::Inline { name, .. } => text += &format!("<<{name}"),
            CopyFrom::Git { remote, .. } => text += remote,
        }
        text.push(' ');
    }
    text + &copy.destination
}

fn pairs_text(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn json(words: &[String]) -> String {
    serde_json::Value::from(words.to_vec()).to_string()
}
