//! Policies about builds: implement [`BuildPolicy`], name it in [`build_policy!`](crate::build_policy).

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::settings;

/// The contract as wit-bindgen writes it; use the names that the module exports at its top instead.
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "build-policy",
        pub_export_macro: true,
        export_macro_name: "export_build",
        default_bindings_module: "ampoule_policy::build::bindings",
        generate_all,
    });
}

pub use bindings::ampoule::policy::log::{Level, log};
pub use bindings::exports::ampoule::policy::build::{
    Action, Base, BuildRefusal, BuildWarning, Change, ContextSummary, CopiedFiles, CopySource, Decision, Mount, Origin,
    Request, Run, SourceImage, Stage, Step, Verdict,
};

/// A policy about builds. It is a pure function: every call gets an instance of its own, in which no clock runs.
pub trait BuildPolicy {
    /// See [`Policy::Settings`](crate::Policy::Settings).
    type Settings: DeserializeOwned;

    /// Says what is wrong with settings that could be read; asked once, when the policy is bound.
    ///
    /// # Errors
    /// A sentence that names the key.
    fn check(_settings: &Self::Settings) -> Result<(), String> {
        Ok(())
    }

    /// May this image be built, and as what?
    fn review_plan(build: &Request, settings: &Self::Settings) -> Verdict;
}

impl Verdict {
    /// No objection.
    pub fn allow() -> Verdict {
        Verdict { decision: Decision::Allow, warnings: Vec::new(), extensions: Vec::new() }
    }

    /// A refusal at a line (0 for none): a stable code of small letters, digits and hyphens, and a sentence.
    pub fn deny(code: &str, line: u32, reason: impl Into<String>) -> Verdict {
        let (code, reason, hint) = (code.into(), reason.into(), String::new());
        let refusal = BuildRefusal { code, reason, hint, line, extensions: Vec::new() };
        Verdict { decision: Decision::Deny(refusal), ..Verdict::allow() }
    }

    /// The image is built with these changes, made in order; with none, it is built as it is.
    pub fn change(changes: Vec<Change>) -> Verdict {
        if changes.is_empty() {
            return Verdict::allow();
        }
        Verdict { decision: Decision::Change(changes), ..Verdict::allow() }
    }

    /// Tells of a refusal what can be done about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Verdict {
        if let Decision::Deny(refusal) = &mut self.decision {
            refusal.hint = hint.into();
        }
        self
    }

    /// Adds something that should be known about a line (0 for none) although nothing is refused.
    #[must_use]
    pub fn warn(mut self, code: &str, line: u32, message: impl Into<String>) -> Verdict {
        self.warnings.push(BuildWarning { code: code.into(), message: message.into(), line });
        self
    }
}

impl Request {
    /// The stage that becomes the image.
    pub fn target_stage(&self) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.index == self.target)
    }

    /// Every image that the build uses, with the line that names it: bases, and origins of copies and mounts.
    pub fn images(&self) -> Vec<(u32, &SourceImage)> {
        let mut images = Vec::new();
        for stage in &self.stages {
            if let Base::Image(image) = &stage.base {
                images.push((stage.line, image));
            }
            for step in &stage.steps {
                let origins: Vec<&Origin> = match &step.action {
                    Action::Copy(copy) => vec![&copy.from],
                    Action::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.as_ref()).collect(),
                    _ => Vec::new(),
                };
                images.extend(origins.into_iter().filter_map(|origin| match origin {
                    Origin::Image(image) => Some((step.line, image)),
                    _ => None,
                }));
            }
        }
        images
    }
}

/// Puts a [`BuildPolicy`] behind the exports of the contract. Named by [`build_policy!`](crate::build_policy) only.
#[doc(hidden)]
pub struct Exported<P>(PhantomData<P>);

impl<P: BuildPolicy> bindings::exports::ampoule::policy::build::Guest for Exported<P> {
    fn review_plan(request: Request, settings: String) -> Verdict {
        log_panics();
        let settings = serde_json::from_str(&settings).expect("the settings were checked when the policy was bound");
        P::review_plan(&request, &settings)
    }
}

impl<P: BuildPolicy> settings::exports::ampoule::policy::settings::Guest for Exported<P> {
    fn validate(settings: String) -> Result<(), String> {
        log_panics();
        P::check(&serde_json::from_str(&settings).map_err(|error| error.to_string())?)
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Makes the named type, which implements [`BuildPolicy`](crate::build::BuildPolicy), what the component exports.
#[macro_export]
macro_rules! build_policy {
    ($policy:ty) => {
        type AmpouleExported = $crate::build::Exported<$policy>;
        $crate::build::bindings::export_build!(AmpouleExported with_types_in $crate::build::bindings);
        $crate::settings::export_settings!(AmpouleExported with_types_in $crate::settings);
    };
}
