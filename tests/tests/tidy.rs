//! Rules of ours that a machine can hold: layout, imports, size of functions, where `unsafe` is. They read source
//! text as rustfmt leaves it, and know no more of Rust than they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest function, from its first line to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// The crates of the product: folder of their sources, and the other crates of ours that they may name.
const CRATES: [(&str, &[&str]); 4] = [
    ("engine/src", &["ampoule_engine"]),
    ("plugins/src", &["ampoule_plugins"]),
    ("sdk/client/src", &["ampoule_client"]),
    ("api/src", &["ampoule_api", "ampoule_engine", "ampoule_plugins", "ampoule_client"]),
];
const OUR_CRATES: [&str; 5] = ["ampoule_engine", "ampoule_plugins", "ampoule_client", "ampoule_api", "ampoule_tests"];

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Source {
    /// The lines before the module of unit tests, numbered from 1.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        self.text[..end].lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Every Rust file that we wrote, guests and tests included.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["engine", "plugins", "api", "sdk", "tests", "policies"] {
        collect(&workspace().join(folder), &mut found);
    }
    assert!(found.len() > 20, "only {} source files: is the workspace complete?", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("the workspace can be read").path()) {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(workspace()).expect("it lies below").to_string_lossy().into_owned();
            found.push(Source { path: relative, text: fs::read_to_string(&path).expect("the workspace can be read") });
        }
    }
}

#[track_caller]
fn check_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is() {
    let without = sources().into_iter().filter(|source| !source.text.starts_with("//! ")).map(|source| source.path);
    check_none(&without.collect::<Vec<_>>(), "a file opens with `//!`");
}

#[test]
fn a_module_is_a_noun_beside_its_folder() {
    let vague = ["mod.rs", "utils.rs", "util.rs", "helpers.rs", "helper.rs", "common.rs", "misc.rs", "imp.rs"];
    let types = ["sdk/client/src/types.rs", "api/src/docker/types.rs"];
    let broken = sources().into_iter().map(|source| source.path).filter(|path| {
        let name = path.rsplit('/').next().unwrap_or(path);
        vague.contains(&name) || (name == "types.rs" && !types.contains(&path.as_str()))
    });
    check_none(&broken.collect::<Vec<_>>(), "no mod.rs, no vague names");
}

#[test]
fn nothing_is_left_for_later() {
    // Taken apart, so that this file does not break its own rule.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut broken = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    check_none(&broken, "what is to be done is an issue, not a remark");
}

#[test]
fn no_function_is_longer_than_a_page() {
    let mut broken = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (first, line) in lines.iter().enumerate().filter(|(_, line)| opens_function(line)) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let closing = format!("{indent}}}");
            let Some(length) = lines[first..].iter().position(|line| {
                *line == closing
                    || line.ends_with(';') && line.starts_with(indent) && !line[indent.len()..].starts_with(' ')
            }) else {
                continue;
            };
            if length + 1 > FUNCTION_LINES_MAX {
                broken.push(format!("{}:{}: {} lines", source.path, first + 1, length + 1));
            }
        }
    }
    check_none(&broken, "a function has at most 70 lines");
}

fn opens_function(line: &str) -> bool {
    let mut rest = line.trim_start();
    for word in ["pub(crate) ", "pub(super) ", "pub ", "const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.starts_with("fn ")
}

#[test]
fn unsafe_code_is_in_one_file() {
    // Besides: the one call that maps a precompiled component, and the guests' generated glue.
    let allowed = ["engine/src/sys.rs", "plugins/src/precompiled.rs"];
    let mut broken = Vec::new();
    for source in sources() {
        let is_product = CRATES.iter().any(|(folder, _)| source.path.starts_with(folder));
        if !is_product || allowed.contains(&source.path.as_str()) {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl") {
                broken.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    check_none(&broken, "unsafe code is in engine/src/sys.rs");
}

#[test]
fn an_error_is_logged_or_returned_and_never_both() {
    let mut broken = Vec::new();
    for source in sources() {
        let lines: Vec<(usize, &str)> = source.product_lines().collect();
        for pair in lines.windows(3) {
            let logs = ["error!(", "warn!("].iter().any(|log| pair[0].1.trim_start().contains(log));
            let returns = pair[1..].iter().any(|(_, line)| line.trim_start().starts_with("return Err("));
            if logs && returns {
                broken.push(format!("{}:{}: {}", source.path, pair[0].0, pair[0].1.trim()));
            }
        }
    }
    check_none(&broken, "an error is logged where it is handled, not on its way");
}

#[test]
fn error_messages_are_lower_case_without_a_full_stop() {
    let mut broken = Vec::new();
    for source in sources() {
        for (number, line) in source.product_lines() {
            let Some(message) = line.trim_start().strip_prefix("#[error(\"") else { continue };
            let message = message.trim_end_matches(")]").trim_end_matches('"');
            let is_acronym = message.chars().nth(1).is_some_and(|second| second.is_uppercase());
            let starts_upper = message.chars().next().is_some_and(char::is_uppercase) && !is_acronym;
            if starts_upper || message.ends_with('.') {
                broken.push(format!("{}:{number}: {message}", source.path));
            }
        }
    }
    check_none(&broken, "an error message is lower case and has no full stop");
}

#[test]
fn a_crate_names_only_those_that_it_may_import() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some((_, allowed)) = CRATES.iter().find(|(folder, _)| source.path.starts_with(folder)) else { continue };
        for (number, line) in source.product_lines() {
            let code = line.split("//").next().unwrap_or("");
            for name in OUR_CRATES.iter().filter(|name| !allowed.contains(name)) {
                if code.contains(&format!("{name}::")) || code.contains(&format!("use {name}")) {
                    broken.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    check_none(&broken, "engine and plugins know none of ours, the client nobody");
}

#[test]
fn modules_import_each_other_in_one_direction() {
    let sources = sources();
    let mut broken = Vec::new();
    for (folder, _) in CRATES {
        let graph = imports(&sources, folder);
        for (module, imported) in &graph {
            for target in imported {
                if reaches(&graph, target, module) {
                    broken.push(format!("{folder}: {module} imports {target}, which comes back to {module}"));
                }
            }
        }
    }
    check_none(&broken, "no cycles of imports between modules");
}

/// Top-level module, and the top-level modules that it names.
fn imports(sources: &[Source], folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let Some(inside) = source.path.strip_prefix(folder).and_then(|path| path.strip_prefix('/')) else { continue };
        let module = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs").to_owned();
        // The roots of a crate tie everything together; that is their task.
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let entry = graph.entry(module.clone()).or_default();
        for (_, line) in source.product_lines() {
            let code = line.split("//").next().unwrap_or("");
            let named = code.split("crate::").skip(1).filter(|_| !code.contains("pub(in crate::"));
            for rest in named {
                entry.extend(names_at_start(rest).into_iter().filter(|name| *name != module));
            }
        }
    }
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    for imported in graph.values_mut() {
        imported.retain(|name| modules.contains(name));
    }
    graph
}

/// `jobs::queue` gives `jobs`; `{jobs::queue, limits}` gives both.
fn names_at_start(rest: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    match rest.strip_prefix('{') {
        Some(list) => list.split(['}', ';']).next().unwrap_or("").split(',').map(name).collect(),
        None => vec![name(rest)],
    }
}

fn reaches(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module.clone()) {
            open.extend(graph.get(&module).into_iter().flatten().cloned());
        }
    }
    false
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("the workspace has a manifest");
    let section = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let lines = section.expect("the manifest lists dependencies").lines();
    let without = lines.filter(|line| line.contains(" = ") && !line.contains("path = ") && !line.contains(" # "));
    check_none(&without.map(str::to_owned).collect::<Vec<_>>(), "a dependency has its reason behind it");
}

#[test]
fn every_promise_of_the_security_page_names_a_test_that_exists() {
    let page = fs::read_to_string(workspace().join("docs/security.md")).expect("docs/security.md exists");
    let tests: String = sources().into_iter().map(|source| source.text).collect();
    let mut named = 0;
    let mut broken = Vec::new();
    for word in page.split('`').skip(1).step_by(2) {
        // The name of a test is a sentence; shorter names in code type are something else.
        if word.matches('_').count() >= 4
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            named += 1;
            if !tests.contains(&format!("fn {word}(")) {
                broken.push(word.to_owned());
            }
        }
    }
    check_none(&broken, "a promise names its test");
    assert!(named >= 10, "docs/security.md names only {named} tests");
}
