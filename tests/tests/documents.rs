//! What the documents tell a reader to type works as it stands there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule_tests::registry::{Registry, Request};
use ampoule_tests::{Options, Service, ampoule_program, archive};

/// Where the documents say that the socket is; the tests put theirs there.
const USUAL_SOCKET: &str = "/run/ampoule/ampoule.sock";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

fn document(name: &str) -> String {
    let path = workspace().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).filter_map(|rest| rest.split("\n```").next()).map(str::to_owned).collect()
}

#[test]
fn the_curl_examples_of_the_api_page_work_as_they_stand() {
    let service = Service::start();
    let examples = blocks(&document("docs/api.md"), "sh");
    assert!(examples.len() >= 5, "docs/api.md has only {} examples", examples.len());
    // Together, in order: later ones may use what earlier ones made.
    let script = examples.join("\n").replace(USUAL_SOCKET, &service.socket().to_string_lossy());
    let folder = service.folder().join("examples");
    fs::create_dir(&folder).expect("the folder can be written");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-x", "-c", &script])
        .current_dir(&folder)
        .output()
        .expect("bash is there");
    let (out, trace) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{trace}\n{out}", output.status);
    assert!(!out.contains("urn:ampoule:problem:internal"), "{out}");
}

#[test]
fn what_readme_says_to_make_can_be_made() {
    let makefile = document("Makefile");
    let readme = document("README.md");
    let mut found = 0;
    for line in blocks(&readme, "sh").iter().flat_map(|block| block.lines()) {
        let mut words = line.split_whitespace().skip_while(|word| word.contains('='));
        if words.next() != Some("make") {
            continue;
        }
        for target in words.take_while(|word| !word.starts_with('#')).filter(|word| !word.contains('=')) {
            found += 1;
            assert!(makefile.contains(&format!("\n{target}:")), "README.md: make {target}");
        }
    }
    assert!(found >= 2, "README.md shows {found} targets, and promises two commands that do everything");
}

#[test]
fn the_commands_of_readme_work_as_they_stand() {
    // The tour pulls from Docker Hub: a mirror on loopback answers for it.
    let hub = Registry::start();
    hub.contents.add_image("library/debian", "12", &[&archive::busybox()]);
    let mirror = format!("[registry.'docker.io']\nmirrors = ['{}']\n", hub.url());
    let (service, _settings) = Service::with_registries(&mirror, Options::default());
    let folder = service.folder().join("tour");
    fs::create_dir(&folder).expect("the folder can be written");
    let programs = ampoule_program().parent().expect("it lies in a folder").to_path_buf();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    for line in blocks(&document("README.md"), "sh").iter().flat_map(|block| block.lines()) {
        let command = line.trim_start_matches("sudo ");
        // The service runs already, and another test makes what `make` makes.
        if !command.starts_with("ampoule ") || command.starts_with("ampoule serve") {
            continue;
        }
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(&folder)
            .env("PATH", &path)
            .env("AMPOULE_HOST", format!("unix://{}", service.socket().display()))
            .output()
            .expect("bash is there");
        let text = String::from_utf8_lossy(&output.stderr);
        // Commands that show a failure fail: but by the job's doing, never by ours.
        assert!(
            output.status.code().is_some_and(|code| ![2, 125].contains(&code)),
            "{line}: {}\n{text}",
            output.status
        );
    }
    assert!(hub.contents.count(Request::is_blob) > 0, "nothing was pulled");
}

#[test]
fn every_page_that_a_page_points_to_exists() {
    let mut pages = vec!["README.md".to_owned()];
    let docs = fs::read_dir(workspace().join("docs")).expect("docs/ exists");
    pages.extend(docs.map(|entry| format!("docs/{}", entry.expect("it can be read").file_name().to_string_lossy())));
    let mut broken = Vec::new();
    for page in pages.iter().filter(|page| page.ends_with(".md")) {
        let folder = workspace().join(page).parent().expect("it lies in a folder").to_path_buf();
        for target in document(page).split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
