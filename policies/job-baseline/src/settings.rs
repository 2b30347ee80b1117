//! The settings, and the limits as rows of a table.

use ampoule_policy::{Limit, Limits, RequestedLimits};
use serde::Deserialize;

/// Most patterns of one list.
const PATTERNS_MAX: usize = 256;

/// The table `[policy.settings]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// Patterns of references; a job whose image fits none is refused.
    pub(crate) images: Vec<String>,
    /// Patterns of variable names; a job that has one is refused.
    #[serde(default)]
    pub(crate) forbidden_env: Vec<String>,
    /// Whom every job runs as, whatever it asks for.
    pub(crate) user: Option<String>,
    /// The most that a job may ask for.
    #[serde(default)]
    pub(crate) ceilings: SetLimits,
    /// What a job gets that does not ask.
    #[serde(default)]
    pub(crate) defaults: SetLimits,
}

/// Some of the limits.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct SetLimits {
    memory_bytes: Option<u64>,
    cpu_milli: Option<u32>,
    pids: Option<u32>,
    cpu_time_ms: Option<u64>,
    wall_time_ms: Option<u64>,
    open_files: Option<u64>,
    file_bytes: Option<u64>,
    output_bytes: Option<u64>,
    output_total_bytes: Option<u64>,
}

impl Settings {
    /// Says what is wrong, naming the key.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.images.is_empty() {
            return Err("`images` is empty, so that every job would be refused; `[\"*\"]` allows all".to_owned());
        }
        for (key, patterns) in [("images", &self.images), ("forbidden-env", &self.forbidden_env)] {
            if patterns.len() > PATTERNS_MAX || patterns.iter().any(String::is_empty) {
                return Err(format!("`{key}` has 1 to {PATTERNS_MAX} patterns, none of them empty"));
            }
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.contains('\0')) {
            return Err("`user` is `uid`, `uid:gid`, `name` or `name:group`".to_owned());
        }
        LIMITS.iter().try_for_each(|limit| self.check_limit(limit))
    }

    fn check_limit(&self, limit: &Row) -> Result<(), String> {
        let name = limit.name.replace('_', "-");
        let (ceiling, default) = ((limit.set)(&self.ceilings), (limit.set)(&self.defaults));
        for (table, value) in [("ceilings", ceiling), ("defaults", default)] {
            if value == Some(0) {
                return Err(format!("`{table}.{name}` must be above 0"));
            }
        }
        match (ceiling, default) {
            (Some(ceiling), Some(default)) if default > ceiling => {
                Err(format!("`defaults.{name}` of {default} is above `ceilings.{name}` of {ceiling}"))
            }
            _ => Ok(()),
        }
    }
}

/// One limit: what it is called, and where it stands in a job, a wish and the settings.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) limit: Limit,
    pub(crate) applied: fn(&Limits) -> u64,
    pub(crate) requested: fn(&RequestedLimits) -> Option<u64>,
    pub(crate) set: fn(&SetLimits) -> Option<u64>,
}

macro_rules! row {
    ($field:ident, $limit:ident) => {
        Row {
            name: stringify!($field),
            limit: Limit::$limit,
            applied: |limits| u64::from(limits.$field),
            requested: |limits| limits.$field.map(u64::from),
            set: |limits| limits.$field.map(u64::from),
        }
    };
}

/// All limits.
pub(crate) const LIMITS: &[Row] = &[
    row!(memory_bytes, MemoryBytes),
    row!(cpu_milli, CpuMilli),
    row!(pids, Pids),
    row!(cpu_time_ms, CpuTimeMs),
    row!(wall_time_ms, WallTimeMs),
    row!(open_files, OpenFiles),
    row!(file_bytes, FileBytes),
    row!(output_bytes, OutputBytes),
    row!(output_total_bytes, OutputTotalBytes),
];
