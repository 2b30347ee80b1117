//! What a command does with package managers, as far as its words tell.

use std::collections::BTreeSet;

/// A package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manager {
    Apt,
    Apk,
    Dnf,
}

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Update,
    Install,
    Clean,
}

impl Manager {
    pub(super) fn name(self) -> &'static str {
        match self {
            Manager::Apt => "apt-get",
            Manager::Apk => "apk",
            Manager::Dnf => "dnf",
        }
    }
}

/// Everything that a text does, each once.
pub(super) fn uses(text: &str) -> BTreeSet<(Manager, Use)> {
    let mut found = BTreeSet::new();
    for command in text.split(['\n', ';', '&', '|', '(', ')', '{', '}']) {
        let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches(['"', '\''])).collect();
        for (index, word) in words.iter().enumerate() {
            let name = word.rsplit('/').next().unwrap_or(word);
            let rest = &words[index + 1..];
            match name {
                "apt-get" | "apt" => found.extend(apt(rest)),
                "apk" => found.extend(apk(rest)),
                "dnf" | "yum" | "microdnf" => found.extend(dnf(rest)),
                "rm" => found.extend(removed(rest)),
                _ => {}
            }
        }
    }
    found
}

/// The first word that is neither an option nor the value of one.
fn action<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "-o" | "-t" | "-c" | "--option" | "--config-file" | "--repository" => drop(words.next()),
            word if word.starts_with('-') => {}
            word => return Some(word),
        }
    }
    None
}

fn apt(words: &[&str]) -> Option<(Manager, Use)> {
    match action(words)? {
        "update" => Some((Manager::Apt, Use::Update)),
        "install" => Some((Manager::Apt, Use::Install)),
        _ => None,
    }
}

fn apk(words: &[&str]) -> Vec<(Manager, Use)> {
    let mut found = Vec::new();
    if action(words) == Some("add") {
        found.push((Manager::Apk, Use::Install));
    }
    // Without a cache there is nothing to clean.
    if words.contains(&"--no-cache") {
        found.push((Manager::Apk, Use::Clean));
    }
    found
}

fn dnf(words: &[&str]) -> Option<(Manager, Use)> {
    match action(words)? {
        "install" => Some((Manager::Dnf, Use::Install)),
        "clean" => Some((Manager::Dnf, Use::Clean)),
        _ => None,
    }
}

fn removed(words: &[&str]) -> Vec<(Manager, Use)> {
    let lists = [(Manager::Apt, "/var/lib/apt"), (Manager::Apk, "/var/cache/apk"), (Manager::Dnf, "/var/cache")];
    let is_removed = |path: &str| words.iter().any(|word| word.starts_with(path));
    lists.into_iter().filter(|(_, path)| is_removed(path)).map(|(manager, _)| (manager, Use::Clean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(Manager, Use)]) {
        assert_eq!(uses(text), expected.iter().copied().collect(), "{text}");
    }

    #[test]
    fn words_of_a_command_tell_what_it_does_with_packages() {
        let (update, install, clean) =
            ((Manager::Apt, Use::Update), (Manager::Apt, Use::Install), (Manager::Apt, Use::Clean));
        check("apt-get update && apt-get install -y curl && rm -rf /var/lib/apt/lists/*", &[update, install, clean]);
        check("DEBIAN_FRONTEND=noninteractive apt-get -o A=install -qq update", &[update]);
        check("/usr/bin/apt install x", &[install]);
        check("apk add --no-cache git", &[(Manager::Apk, Use::Install), (Manager::Apk, Use::Clean)]);
        check("dnf install -y x; dnf clean all", &[(Manager::Dnf, Use::Install), (Manager::Dnf, Use::Clean)]);
        check("echo apt-getupdate; make install", &[]);
    }
}
