//! Write policies for Ampoule in Rust: implement [`Policy`], name it in [`policy!`], build a component.
//!
//! ```
//! use ampoule_policy::{Policy, Request, Verdict};
//!
//! struct NoRoot;
//!
//! impl Policy for NoRoot {
//!     type Settings = ampoule_policy::NoSettings;
//!
//!     fn admit(job: &Request, _settings: &Self::Settings) -> Verdict {
//!         if job.user == "0" || job.user == "root" {
//!             return Verdict::deny("root-user", "this service runs no job as root").hint("leave `user` out");
//!         }
//!         Verdict::allow()
//!     }
//! }
//!
//! ampoule_policy::policy!(NoRoot);
//! ```

use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub mod build;

/// The contract as wit-bindgen writes it; use the names that the crate exports at its top instead.
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "admission-policy",
        pub_export_macro: true,
        default_bindings_module: "ampoule_policy::bindings",
        generate_all,
    });
}

/// The settings, which policies of every hook export; its macros are of the crate and can be made once only.
#[doc(hidden)]
pub mod settings {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package ampoule:kit; world with-settings { export ampoule:policy/settings@1.0.0; }",
        world: "ampoule:kit/with-settings",
        pub_export_macro: true,
        export_macro_name: "export_settings",
        default_bindings_module: "ampoule_policy::settings",
        generate_all,
    });
}

pub use bindings::ampoule::policy::log::{Level, log};
pub use bindings::ampoule::policy::types::{File, Image, Limit, Limits, Refusal, RequestedLimits, Warning, Writable};
pub use bindings::exports::ampoule::policy::admission::{Change, Decision, Request, Verdict};

/// A policy about jobs. It is a pure function: every call gets an instance of its own, in which no clock runs.
pub trait Policy {
    /// The policy's table in `policies.toml`, where keys are written with hyphens: derive `Deserialize` with
    /// `#[serde(rename_all = "kebab-case", deny_unknown_fields)]`, so that a mistyped key is found at once.
    type Settings: DeserializeOwned;

    /// Says what is wrong with settings that could be read; asked once, when the policy is bound.
    ///
    /// # Errors
    /// A sentence that names the key.
    fn check(_settings: &Self::Settings) -> Result<(), String> {
        Ok(())
    }

    /// May this job run, and as what?
    fn admit(job: &Request, settings: &Self::Settings) -> Verdict;
}

/// For policies that have nothing to set: any key is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

impl Verdict {
    /// No objection.
    pub fn allow() -> Verdict {
        Verdict { decision: Decision::Allow, warnings: Vec::new(), extensions: Vec::new() }
    }

    /// A refusal: a stable code of small letters, digits and hyphens, and a sentence.
    pub fn deny(code: &str, reason: impl Into<String>) -> Verdict {
        let refusal = Refusal { code: code.into(), reason: reason.into(), hint: String::new(), extensions: Vec::new() };
        Verdict { decision: Decision::Deny(refusal), ..Verdict::allow() }
    }

    /// The job runs with these changes, made in order; with none, it runs as it is.
    pub fn change(changes: Vec<Change>) -> Verdict {
        if changes.is_empty() {
            return Verdict::allow();
        }
        Verdict { decision: Decision::Change(changes), ..Verdict::allow() }
    }

    /// Tells the client of a refusal what can be done about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Verdict {
        if let Decision::Deny(refusal) = &mut self.decision {
            refusal.hint = hint.into();
        }
        self
    }

    /// Adds something that the client should know although nothing is refused.
    #[must_use]
    pub fn warn(mut self, code: &str, message: impl Into<String>) -> Verdict {
        self.warnings.push(Warning { code: code.into(), message: message.into() });
        self
    }
}

/// Puts a [`Policy`] behind the exports of the contract. Named by [`policy!`] only.
#[doc(hidden)]
pub struct Exported<P>(PhantomData<P>);

impl<P: Policy> bindings::exports::ampoule::policy::admission::Guest for Exported<P> {
    fn admit(request: Request, settings: String) -> Verdict {
        log_panics();
        let settings = serde_json::from_str(&settings).expect("the settings were checked when the policy was bound");
        P::admit(&request, &settings)
    }
}

impl<P: Policy> settings::exports::ampoule::policy::settings::Guest for Exported<P> {
    fn validate(settings: String) -> Result<(), String> {
        log_panics();
        P::check(&serde_json::from_str(&settings).map_err(|error| error.to_string())?)
    }
}

/// Without WASI a panic has nowhere to go, and all that is seen of it is a trap.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Makes the named type, which implements [`Policy`], what the component exports.
#[macro_export]
macro_rules! policy {
    ($policy:ty) => {
        type AmpouleExported = $crate::Exported<$policy>;
        $crate::bindings::export!(AmpouleExported with_types_in $crate::bindings);
        $crate::settings::export_settings!(AmpouleExported with_types_in $crate::settings);
    };
}

/// The README's example, kept true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
