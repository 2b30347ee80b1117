//! Compiled code and where it is kept: one file for each policy and engine, in a folder that only we can write.
//! A file that is not exactly what was written is compiled anew; a folder that others can write is an error.

use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// Largest compiled policy, in bytes; the largest interpreter that was measured takes 35 MB.
const CODE_BYTES_MAX: u64 = 256 << 20;
/// Length of the SHA-256 in front of the code, in bytes.
const SEAL_BYTES: usize = 32;
/// The ending of our files.
const EXTENSION: &str = "cwasm";

/// The folder of compiled code.
pub(crate) struct Cache {
    folder: PathBuf,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be made or looked at.
    #[error("cannot use the folder {folder} for compiled policies")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could put code into it.
    #[error(
        "the folder {folder} for compiled policies is not ours alone\nhint: it must be a folder of this user with mode 0700"
    )]
    NotOurs {
        /// The folder.
        folder: PathBuf,
    },
}

impl Cache {
    /// Opens the folder, and makes it when there is none.
    ///
    /// # Errors
    /// It cannot be made, or someone else could write into it.
    pub(crate) fn open(folder: &Path) -> Result<Cache, CacheError> {
        let failed = |source| CacheError::Folder { folder: folder.to_owned(), source };
        match DirBuilder::new().recursive(true).mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let metadata = folder.symlink_metadata().map_err(failed)?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        if !metadata.is_dir() || !is_ours {
            return Err(CacheError::NotOurs { folder: folder.to_owned() });
        }
        Ok(Cache { folder: folder.to_owned() })
    }

    /// The compiled form of a component whose digest is given: from the folder, or compiled now and put there.
    ///
    /// # Errors
    /// It cannot be compiled. A folder that cannot be read or written only costs time, and is logged.
    #[expect(unsafe_code, reason = "wasmtime cannot check machine code; `get` does")]
    pub(crate) fn component(&self, engine: &Engine, wasm: &[u8], digest: &str) -> wasmtime::Result<Component> {
        // SAFETY: deserialize needs bytes that a compatible engine precompiled; `get` passes no others.
        let load = |code: &[u8]| unsafe { Component::deserialize(engine, code) };
        self.get(&self.path(engine, digest), load, || engine.precompile_component(wasm))
    }

    /// The same for a core module.
    ///
    /// # Errors
    /// It cannot be compiled.
    #[expect(unsafe_code, reason = "wasmtime cannot check machine code; `get` does")]
    pub(crate) fn module(&self, engine: &Engine, wasm: &[u8], digest: &str) -> wasmtime::Result<Module> {
        // SAFETY: deserialize needs bytes that a compatible engine precompiled; `get` passes no others.
        let load = |code: &[u8]| unsafe { Module::deserialize(engine, code) };
        self.get(&self.path(engine, digest), load, || engine.precompile_module(wasm))
    }

    /// Loads only what `precompile` returned, now or when the file was written: the name has the hash of the engine
    /// and of the policy, folder (0700) and file are this user's alone, and the digest shows that the bytes are whole.
    fn get<C>(
        &self,
        path: &Path,
        load: impl Fn(&[u8]) -> wasmtime::Result<C>,
        precompile: impl FnOnce() -> wasmtime::Result<Vec<u8>>,
    ) -> wasmtime::Result<C> {
        if let Some(Ok(code)) = read(path).map(|code| load(&code)) {
            return Ok(code);
        }
        let code = precompile()?;
        if let Err(error) = write(path, &code) {
            tracing::warn!(file = %path.display(), %error, "compiled policy cannot be kept");
        }
        load(&code)
    }

    /// Removes all code but that of these digests for this engine: what an upgrade or a removed policy left.
    pub(crate) fn keep_only(&self, engine: &Engine, digests: &[&str]) -> io::Result<()> {
        let kept: Vec<PathBuf> = digests.iter().map(|digest| self.path(engine, digest)).collect();
        for entry in self.folder.read_dir()? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) && !kept.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn path(&self, engine: &Engine, digest: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let digest = digest.trim_start_matches("sha256:");
        self.folder.join(format!("{digest}-{:016x}.{EXTENSION}", hasher.finish()))
    }
}

/// What was written to a file, if it is whole and nobody else can have written it.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut sealed = read_ours(path)?;
    let code = sealed.split_off(SEAL_BYTES.min(sealed.len()));
    (Sha256::digest(&code).as_slice() == sealed).then_some(code)
}

fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    // A name of its own for each process: two of them may fill the folder at once.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    let written = file.write_all(&Sha256::digest(code)).and_then(|()| file.write_all(code));
    written.and_then(|()| std::fs::rename(&partial, path)).inspect_err(|_| {
        // What is left half-written has no use; failing to remove it changes nothing.
        let _ = std::fs::remove_file(&partial);
    })
}

/// Reads a plain file that only this user can have written.
fn read_ours(path: &Path) -> Option<Vec<u8>> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(no_follow).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !metadata.is_file() || !is_ours || metadata.len() > CODE_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).ok()?);
    file.take(CODE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
