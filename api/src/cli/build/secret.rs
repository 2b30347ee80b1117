//! `--secret`, as docker understands it: where the value of a secret is taken from.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use ampoule_client::types::BuildSecret;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

/// Longest value, in bytes: what the service takes.
const VALUE_BYTES_MAX: u64 = 500 * 1024;
const HINT: &str = "hint: as in --secret id=token,src=token.txt, or --secret id=token,env=TOKEN";

/// Where a value is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File(String),
    Variable(String),
}

/// Reads what was asked for, each in base64 under its id.
pub(super) fn read_all(secrets: &[String]) -> Result<BTreeMap<String, BuildSecret>> {
    let mut values = BTreeMap::new();
    for text in secrets {
        let (id, place) = parse(text)?;
        let value = read(&id, &place)?;
        values.insert(id, BuildSecret(BASE64.encode(value)));
    }
    Ok(values)
}

/// Docker's rules: without a type, `src` is a file that is there or else a variable, and without `src` and `env` it is the
/// variable, or else the file, with the name of the id.
fn parse(text: &str) -> Result<(String, Place)> {
    let (mut id, mut kind, mut source, mut variable) = (None, None, None, None);
    for field in text.split(',') {
        let Some((key, value)) = field.split_once('=') else { bail!("`{field}` in --secret has no value\n{HINT}") };
        let slot = match key.trim().to_ascii_lowercase().as_str() {
            "id" => &mut id,
            "type" => &mut kind,
            "src" | "source" => &mut source,
            "env" => &mut variable,
            _ => bail!("`{key}` is nothing that --secret has\n{HINT}"),
        };
        *slot = Some(value.to_owned());
    }
    let Some(id) = id.filter(|id| !id.is_empty()) else { bail!("--secret has no id\n{HINT}") };
    let is_set = |name: &str| env::var_os(name).is_some();
    let place = match (kind.as_deref(), source, variable) {
        (_, Some(_), Some(_)) => bail!("the secret `{id}` has both src and env\n{HINT}"),
        (Some("file"), Some(path), None) => Place::File(path),
        (Some("file"), None, None) => Place::File(id.clone()),
        (None | Some("env"), None, Some(name)) => Place::Variable(name),
        (Some("env"), source, None) => Place::Variable(source.unwrap_or_else(|| id.clone())),
        (None, Some(path), None) => Place::File(path),
        (None, None, None) if is_set(&id) => Place::Variable(id.clone()),
        (None, None, None) => Place::File(id.clone()),
        (Some("file"), None, Some(_)) => bail!("the secret `{id}` is a file, and has env\n{HINT}"),
        (Some(kind), ..) => bail!("`{kind}` is no type of secret: there are file and env"),
    };
    Ok((id, place))
}

fn read(id: &str, place: &Place) -> Result<Vec<u8>> {
    let value = match place {
        Place::Variable(name) => match env::var_os(name) {
            Some(value) => value.into_vec(),
            None => bail!("the variable `{name}` of the secret `{id}` is not set"),
        },
        Place::File(path) => {
            let failed = || format!("could not read the secret `{id}` from {path}");
            let mut value = Vec::new();
            let file = File::open(path).with_context(failed)?;
            file.take(VALUE_BYTES_MAX + 1).read_to_end(&mut value).with_context(failed)?;
            value
        }
    };
    if value.len() as u64 > VALUE_BYTES_MAX {
        bail!("the secret `{id}` has more than {VALUE_BYTES_MAX} bytes");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_docker_writes_them() {
        let file = |id: &str, path: &str| (id.to_owned(), Place::File(path.to_owned()));
        let variable = |id: &str, name: &str| (id.to_owned(), Place::Variable(name.to_owned()));
        for (text, expected) in [
            ("id=a,src=b", file("a", "b")),
            ("type=file,id=a,source=b", file("a", "b")),
            ("id=a,env=B", variable("a", "B")),
            ("type=env,id=a,src=B", variable("a", "B")),
            ("type=env,id=a", variable("a", "a")),
            ("id=a-b.c", file("a-b.c", "a-b.c")),
            ("id=PATH", variable("PATH", "PATH")),
        ] {
            assert_eq!(parse(text).expect("it is understood"), expected, "{text}");
        }
        for wrong in ["", "a", "src=b", "id=", "id=a,x=b", "id=a,src=b,env=C", "id=a,type=x", "id=a,type=file,env=B"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_is_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "hush").expect("a file");
        let read = read_all(&[format!("id=token,src={}", path.display())]).expect("it is there");
        assert_eq!(read["token"].0, BASE64.encode("hush"));
        assert!(!format!("{read:?}").contains(&BASE64.encode("hush")));
        assert!(read_all(&["id=token,src=/nothing/there".to_owned()]).is_err());
        std::fs::write(&path, vec![0; VALUE_BYTES_MAX as usize + 1]).expect("a file");
        assert!(read_all(&[format!("id=token,src={}", path.display())]).is_err());
    }
}
