//! The image of a build runs as somebody else than root. README.md lists the settings.

use ampoule_policy::build::{Action, Base, BuildPolicy, Change, Request, Stage, Verdict};
use serde::Deserialize;

/// Longest user, in bytes.
const USER_BYTES_MAX: usize = 256;

struct NoRoot;

/// The table `[policy.settings]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Whom an image is made to run as that would run as root.
    force_user: Option<String>,
    /// Whether a base's own user, which may not be known, is taken for root when no USER is set.
    #[serde(default = "yes")]
    base_user_is_root: bool,
}

fn yes() -> bool {
    true
}

impl BuildPolicy for NoRoot {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        let Some(user) = &settings.force_user else { return Ok(()) };
        if user.is_empty() || user.len() > USER_BYTES_MAX || user.contains('\0') {
            return Err("`force-user` is `uid`, `uid:gid`, `name` or `name:group`".to_owned());
        }
        if is_root(user) {
            return Err(format!("`force-user` of `{user}` is root itself"));
        }
        Ok(())
    }

    fn review_plan(build: &Request, settings: &Settings) -> Verdict {
        let Some(stage) = build.target_stage() else {
            return Verdict::deny("no-target", 0, "the build has no target stage");
        };
        let is_unknown = stage.user.is_empty() && !is_from_scratch(build, stage);
        if !is_root(&stage.user) || (is_unknown && !settings.base_user_is_root) {
            return Verdict::allow();
        }
        if let Some(user) = &settings.force_user {
            return Verdict::change(vec![Change::ForceUser(user.clone())]);
        }
        let reason = if is_unknown {
            "the image has no USER of its own, and its base's user is not known".to_owned()
        } else {
            "the image would run as root".to_owned()
        };
        Verdict::deny("runs-as-root", user_line(stage), reason).hint("end the last stage with a USER that is not root")
    }
}

ampoule_policy::build_policy!(NoRoot);

/// No user at all is root, as is the number 0 in any way of writing it.
fn is_root(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    let is_zero = !name.is_empty() && name.trim_start_matches('+').bytes().all(|byte| byte == b'0');
    name.is_empty() || name == "root" || is_zero
}

/// Whether there is no base below that could set a user.
fn is_from_scratch(build: &Request, stage: &Stage) -> bool {
    let mut stage = stage;
    // Stages do not need each other in a circle, and this holds where a host should say so.
    for _ in 0..=build.stages.len() {
        match &stage.base {
            Base::Scratch | Base::Context(_) => return true,
            Base::Image(_) => return false,
            Base::Stage(index) => match build.stages.iter().find(|other| other.index == *index) {
                Some(below) => stage = below,
                None => return false,
            },
        }
    }
    false
}

/// The last USER of the stage, or else its FROM.
fn user_line(stage: &Stage) -> u32 {
    let last = stage.steps.iter().rev().find(|step| matches!(step.action, Action::User(_)));
    last.map_or(stage.line, |step| step.line)
}

#[cfg(test)]
mod tests {
    use super::is_root;

    #[test]
    fn root_is_root_however_it_is_written() {
        assert!(["", "root", "0", "00", "+0", "0:0", "root:users", "0:1000", ":1000"].into_iter().all(is_root));
        assert!(!["1000", "app", "nobody:root", "1000:0", "rootless"].into_iter().any(is_root));
    }
}
