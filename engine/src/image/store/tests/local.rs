//! Naming, looking, pruning, saving and loading, with real archives, and with `skopeo` as the other program.

use super::*;

/// Two images that share their lowest layer.
fn two_images() -> Fixture {
    let fixture = Fixture::new();
    fixture.import(&three_layers("app:1").tar(), None).unwrap();
    let mut small = Layout::default();
    let image = small.image("amd64", &[root()]);
    small.list(image, REF_NAME, "base:1");
    fixture.import(&small.tar(), None).unwrap();
    fixture
}

impl Fixture {
    fn load(&self, archive: &[u8]) -> Result<Loaded, ImportError> {
        let _entered = self.runtime.enter();
        self.store().load(&self.unpacker, archive)
    }

    fn prune(&self, request: &PruneRequest, plan: Option<&str>) -> Result<PrunePlan, PruneError> {
        let _entered = self.runtime.enter();
        self.store().prune(&self.unpacker, request, plan)
    }

    fn remove_forced(&self, reference: &str) -> Result<Removed, RemoveError> {
        let _entered = self.runtime.enter();
        self.store().remove(&self.unpacker, reference, true)
    }

    fn save(&self, references: &[&str], format: ArchiveFormat) -> Result<Vec<u8>, SaveError> {
        let references: Vec<_> = references.iter().map(|&reference| reference.to_owned()).collect();
        let saving = self.store().prepare_save(&references, format)?;
        let mut archive = Vec::new();
        self.store().write_archive(&saving, &mut archive)?;
        assert_eq!(archive.len() as u64, saving.archive_bytes());
        Ok(archive)
    }
}

const ALL: PruneRequest = PruneRequest {
    all: true,
    filter: Filter {
        names: Vec::new(),
        dangling: None,
        labels: Vec::new(),
        without_labels: Vec::new(),
        before: None,
        since: None,
    },
};

#[test]
fn a_tag_is_one_more_name_and_takes_it_from_whoever_had_it() {
    let mut fixture = two_images();
    let app = fixture.store().resolve("app:1").unwrap().digest.clone();
    let base = fixture.store().resolve("base:1").unwrap().digest.clone();
    let tagged = fixture.store().tag("app:1", "host:5000/app:2").unwrap();
    assert_eq!((&tagged.digest, tagged.name.as_str(), tagged.taken_from), (&app, "host:5000/app:2", None));
    let tagged = fixture.store().tag(&app, "base:1").unwrap();
    assert_eq!(tagged.taken_from, Some(base.clone()));
    for _ in 0..2 {
        let names = ["app:1", "base:1", "host:5000/app:2"].map(|name| Some(name.to_owned()));
        assert_eq!(fixture.names(), [&names[..], &[None]].concat(), "the other stays without a name");
        assert!(fixture.store().resolve(&base).is_ok());
        fixture.reopen();
    }
    assert_eq!(fixture.store().tag("app:1", "app:1").unwrap().taken_from, None, "the same name again changes nothing");
    assert_eq!(fixture.names().len(), 4);
    let pinned = format!("x:1@{app}");
    assert!(matches!(fixture.store().tag("app:1", &pinned), Err(TagError::Pinned(_))));
    assert!(matches!(fixture.store().tag("app:1", "UPPER"), Err(TagError::Name(_))));
    assert!(matches!(fixture.store().tag("nothing", "x"), Err(TagError::Resolve(ResolveError::NotFound { .. }))));
}

#[test]
fn an_image_with_several_names_is_removed_by_digest_only_with_force() {
    let fixture = two_images();
    let app = fixture.store().tag("app:1", "app:2").unwrap().digest;
    let error = fixture.remove(&app).unwrap_err();
    assert!(matches!(&error, RemoveError::SeveralNames { names, .. } if names.len() == 2), "{error}");
    let removed = fixture.remove_forced(&app).unwrap();
    assert_eq!((removed.untagged.len(), removed.removed.len()), (2, 4), "manifest, config, two layers of its own");
    assert!(removed.freed_unpacked_bytes > 0);
    assert_eq!(fixture.names(), [Some("base:1".into())]);
}

#[test]
fn force_takes_the_names_of_an_image_in_use_and_prune_takes_it_when_it_is_free() {
    let mut fixture = two_images();
    let held = fixture.store().resolve("app:1").unwrap();
    assert!(matches!(fixture.remove("app:1"), Err(RemoveError::InUse { .. })));
    let removed = fixture.remove_forced("app:1").unwrap();
    assert_eq!((removed.untagged.as_slice(), removed.removed.len()), (&["app:1".to_owned()][..], 0));
    assert!(matches!(fixture.remove_forced(&held.digest), Err(RemoveError::InUse { .. })), "there is no name to take");
    let plan = fixture.prune(&PruneRequest::default(), None).unwrap();
    assert_eq!((plan.images.len(), plan.kept.len(), plan.freed_bytes), (0, 1, 0));
    assert!(fixture.store().inspect(&held.digest).unwrap().is_held);
    assert!(held.layers.iter().all(|layer| fixture.layers().contains(layer.hex())));
    drop(held);
    fixture.reopen();
    assert_eq!(fixture.names(), [Some("base:1".into()), None], "dangling until somebody prunes");
    assert_eq!(fixture.prune(&PruneRequest::default(), None).unwrap().images.len(), 1);
    assert_eq!((fixture.names(), fixture.blobs().len(), fixture.layers().len()), (vec![Some("base:1".into())], 3, 1));
}

#[test]
fn what_is_shown_is_what_goes() {
    let fixture = two_images();
    assert_eq!(fixture.store().plan_prune(&PruneRequest::default()).images, []);
    let shown = fixture.store().plan_prune(&ALL);
    assert_eq!(shown, fixture.store().plan_prune(&ALL));
    let on_disk = |fixture: &Fixture| -> u64 {
        let folder = fixture.oci().join("blobs/sha256");
        fixture.blobs().iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum()
    };
    assert_eq!(shown.freed_bytes, on_disk(&fixture));
    fixture.store().tag("app:1", "app:2").unwrap();
    let error = fixture.prune(&ALL, Some(&shown.id)).unwrap_err();
    assert!(matches!(error, PruneError::Changed(_)), "{error}");
    assert_eq!(fixture.names().len(), 3, "nothing went");
    let shown = fixture.store().plan_prune(&ALL);
    let done = fixture.prune(&ALL, Some(&shown.id)).unwrap();
    assert_eq!(done, shown);
    fixture.check_empty();
}

#[test]
fn a_filter_spares_what_it_does_not_mean() {
    let fixture = two_images();
    let labels = |text: &str| vec![LabelCondition::parse(text).unwrap()];
    let with = |filter: Filter| fixture.store().plan_prune(&PruneRequest { all: true, filter }).images.len();
    assert_eq!(with(Filter { labels: labels("x=y"), ..Filter::default() }), 2);
    assert_eq!(with(Filter { without_labels: labels("x"), ..Filter::default() }), 0);
    let time = |text: &str| text.parse().ok();
    assert_eq!(with(Filter { before: time("2026-01-01T00:00:00Z"), ..Filter::default() }), 0);
    assert_eq!(with(Filter { before: time("2026-01-01T00:00:01Z"), ..Filter::default() }), 2);
    let names = vec![NamePattern::parse("base:*").unwrap()];
    let found = fixture.store().find_all(&Filter { names, ..Filter::default() });
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].stored.shared_bytes, gzip(&root()).len() as u64, "the layer that both have");
}

#[test]
fn a_lease_holds_an_image_without_a_name_and_over_a_crash() {
    let mut fixture = two_images();
    let app = fixture.store().lease("build-1", LeaseKind::Pin, "tests", "app:1", None).unwrap().digest.to_string();
    fixture.store().lease("work", LeaseKind::Work, "tests", "base:1", None).unwrap();
    assert!(fixture.remove("app:1").unwrap_err().to_string().contains("the lease `build-1` of tests"));
    assert!(matches!(fixture.remove("base:1"), Err(RemoveError::InUse { .. })));
    fixture.remove_forced("app:1").unwrap();
    assert_eq!(fixture.prune(&ALL, None).unwrap().images, []);
    fixture.reopen();
    fixture.reconcile();
    let names: Vec<_> = fixture.store().standing_leases().into_iter().map(|lease| lease.name).collect();
    assert_eq!(names, ["build-1"], "work of a killed process is over");
    let gone: Vec<_> = fixture.prune(&ALL, None).unwrap().images.into_iter().map(|image| image.names).collect();
    assert_eq!(gone, [["base:1"]]);
    assert!(fixture.store().resolve(&app).unwrap().layers.iter().all(|layer| fixture.layers().contains(layer.hex())));
    assert!(fixture.store().release("build-1").unwrap() && !fixture.store().release("build-1").unwrap());
    fixture.prune(&ALL, None).unwrap();
    fixture.check_empty();
}

#[test]
fn a_lease_ends_at_its_time_and_has_a_plain_name() {
    let mut fixture = two_images();
    fixture.store().lease("over", LeaseKind::Pin, "tests", "app:1", Some(1)).unwrap();
    assert_eq!(fixture.store().standing_leases(), []);
    fixture.remove("app:1").unwrap();
    for name in ["", "../x", ".hidden", "a/b", &"a".repeat(129)] {
        let error = fixture.store().lease(name, LeaseKind::Pin, "tests", "base:1", None).unwrap_err();
        assert!(matches!(error, LeaseError::Name(_)), "{name}: {error}");
    }
    let error = fixture.store().lease("x", LeaseKind::Pin, "tests", "nothing", None).unwrap_err();
    assert!(matches!(error, LeaseError::Resolve(_)), "{error}");
    fixture.store().lease("kept", LeaseKind::Pin, "tests", "base:1", None).unwrap();
    fs::write(fixture.oci().join(".leases/.half.new"), "{").unwrap();
    fs::write(fixture.oci().join(".leases/decayed"), "{").unwrap();
    fixture.reopen();
    assert_eq!(names_in(&fixture.oci().join(".leases")), BTreeSet::from(["kept".to_owned()]));
}

#[test]
fn usage_tells_shared_and_unique_apart_and_adds_up_to_the_disk() {
    let mut fixture = two_images();
    fs::remove_file(fixture.oci().join(".unpacked.json")).unwrap();
    for _ in 0..2 {
        let usage = fixture.store().disk_usage();
        let folder = fixture.oci().join("blobs/sha256");
        let on_disk: u64 = fixture.blobs().iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum();
        assert_eq!((usage.blobs.total_bytes, usage.blobs.count), (on_disk, fixture.blobs().len()));
        let tars: u64 = layers().iter().map(|layer| layer.len() as u64).sum();
        assert_eq!((usage.layers.total_bytes, usage.layers.count, usage.layers_unknown), (tars, 3, 0));
        assert_eq!(usage.layers.shared_bytes, root().len() as u64);
        assert_eq!((usage.dangling, usage.unused.images), (Reclaimable::default(), 2));
        assert_eq!((usage.unused.stored_bytes, usage.unused.unpacked_bytes), (on_disk, tars));
        // What was measured is kept, and what was lost is measured again.
        fixture.reopen();
    }
}

#[test]
fn everything_of_an_image_is_told_with_the_layer_of_each_step() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    let ids: Vec<_> = layers().iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "author": "somebody", "created": "2026-01-01T00:00:00Z",
        "config": { "Healthcheck": { "Test": ["CMD", "true"] }, "Shell": ["/bin/sh"], "OnBuild": ["RUN x"],
            "StopSignal": "SIGINT", "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/data": {} } },
        "rootfs": { "type": "layers", "diff_ids": ids },
        "history": [{ "created_by": "first" }, { "created_by": "ENV a=b", "empty_layer": true },
            { "created_by": "second", "comment": "a remark" }],
        "beyond": "what OCI knows",
    });
    let image = layout.image_with(&config, &layers());
    layout.list(image, REF_NAME, "app:1");
    fixture.import(&layout.tar(), None).unwrap();
    let detail = fixture.store().inspect("app:1").unwrap();
    assert_eq!((detail.platform.as_str(), detail.author.as_deref()), ("linux/amd64", Some("somebody")));
    let told: Vec<_> = detail.layers.iter().map(|layer| (layer.diff_id.clone(), layer.unpacked_bytes)).collect();
    let expected: Vec<_> = ids.iter().zip(layers()).map(|(id, layer)| (id.clone(), Some(layer.len() as u64))).collect();
    assert_eq!(told, expected);
    let steps: Vec<_> = detail
        .history
        .iter()
        .map(|step| (step.step.created_by.as_deref(), step.layer.as_ref().map(|layer| layer.diff_id.as_str())))
        .collect();
    let id = |at: usize| Some(ids[at].as_str());
    let expected = [(Some("first"), id(0)), (Some("ENV a=b"), None), (Some("second"), id(1)), (None, id(2))];
    assert_eq!(steps, expected, "a step that the history does not tell has its layer at least");
    assert_eq!(detail.config.volumes, ["/data"]);
    let stored = fixture.oci().join("blobs/sha256").join(detail.config_digest.strip_prefix("sha256:").unwrap());
    assert_eq!(fs::read(stored).unwrap(), config.to_string().into_bytes(), "the bytes are the ones that came");
}

#[test]
fn what_is_saved_is_loaded_with_all_digests_and_names() {
    let fixture = two_images();
    fixture.store().tag("app:1", "host:5000/app:2").unwrap();
    let app = fixture.store().resolve("app:1").unwrap().digest.clone();
    for format in [ArchiveFormat::Docker, ArchiveFormat::Oci] {
        let archive = fixture.save(&["app:1", "base:1", "host:5000/app:2"], format).unwrap();
        let again = fixture.save(&["host:5000/app:2", "base:1", "app:1", "app:1"], format).unwrap();
        assert_eq!(archive, again, "the same images in the same order are the same bytes");
        let zstd = zstd::encode_all(&archive[..], 1).unwrap();
        for packed in [archive.clone(), gzip(&archive), zstd] {
            let other = Fixture::new();
            let loaded = other.load(&packed).unwrap();
            assert_eq!((loaded.images.len(), loaded.left_out.len()), (3, 0));
            assert_eq!((other.names(), other.blobs()), (fixture.names(), fixture.blobs()));
            assert_eq!(other.store().resolve("app:1").unwrap().digest, app);
            // Both names are one image: one who holds it by one of them holds it by both.
            let held = other.store().resolve("app:1").unwrap();
            other.remove("app:1").unwrap();
            assert!(matches!(other.remove("host:5000/app:2"), Err(RemoveError::InUse { .. })));
            drop(held);
        }
    }
    let nameless = Fixture::new();
    nameless.load(&fixture.save(&[&app], ArchiveFormat::Docker).unwrap()).unwrap();
    assert_eq!(nameless.names(), [None], "who asks by digest gets no name");
    assert!(matches!(fixture.save(&[], ArchiveFormat::Oci), Err(SaveError::Count(0))));
    assert!(matches!(fixture.save(&["nothing"], ArchiveFormat::Oci), Err(SaveError::Resolve(_))));
}

#[test]
fn skopeo_reads_what_is_saved_and_the_digests_are_the_same() {
    let fixture = two_images();
    let path = |name: &str| fixture.state.path().join(name).display().to_string();
    let app = fixture.store().inspect("app:1").unwrap();
    fs::write(path("docker.tar"), fixture.save(&["app:1", "base:1"], ArchiveFormat::Docker).unwrap()).unwrap();
    fs::write(path("oci.tar"), fixture.save(&["app:1", "base:1"], ArchiveFormat::Oci).unwrap()).unwrap();
    let docker = format!("docker-archive:{}:docker.io/library/app:1", path("docker.tar"));
    let oci = format!("oci-archive:{}:docker.io/library/app:1", path("oci.tar"));
    let inspected: Value = serde_json::from_str(&skopeo(&["inspect", &oci])).unwrap();
    assert_eq!(inspected["Digest"], app.summary.digest);
    for source in [&docker, &oci] {
        let config: Value = serde_json::from_str(&skopeo(&["inspect", "--config", source])).unwrap();
        let ids: Vec<_> = app.layers.iter().map(|layer| json!(layer.diff_id)).collect();
        assert_eq!(config["rootfs"]["diff_ids"], json!(ids));
    }
    skopeo(&["copy", "-q", "--preserve-digests", &oci, &format!("oci-archive:{}:again:1", path("again.tar"))]);
    skopeo(&["copy", "-q", &docker, &format!("docker-archive:{}:again:1", path("again-docker.tar"))]);
    let other = Fixture::new();
    other.load(&fs::read(path("again.tar")).unwrap()).unwrap();
    assert_eq!(other.store().resolve("again:1").unwrap().digest, app.summary.digest);
    let other = Fixture::new();
    other.load(&fs::read(path("again-docker.tar")).unwrap()).unwrap();
    let ids: Vec<_> = other.store().inspect("again:1").unwrap().layers.into_iter().map(|layer| layer.diff_id).collect();
    assert_eq!(ids, app.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>());
}

#[test]
fn an_archive_for_several_platforms_brings_this_machines_and_tells_the_others() {
    let mut layout = Layout::default();
    let mut entries = Vec::new();
    for architecture in ["arm64", "amd64", "s390x"] {
        let mut image = layout.image(architecture, &[root()]);
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        entries.push(image);
    }
    let mut nested = layout.clone();
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    let index = nested.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    nested.list(index, REF_NAME, "app:1");
    let mut flat = layout.clone();
    entries.iter().for_each(|entry| flat.list(entry.clone(), REF_NAME, "app:1"));
    // skopeo writes no platform into the list; the config says it.
    let mut silent = layout;
    for entry in &entries {
        let mut entry = entry.clone();
        entry.as_object_mut().unwrap().remove("platform");
        silent.list(entry, REF_NAME, "app:1");
    }
    for archive in [nested.tar(), flat.tar(), silent.tar()] {
        let fixture = Fixture::new();
        let loaded = fixture.load(&archive).unwrap();
        assert_eq!(loaded.images.len(), 1);
        let platforms: Vec<_> = loaded.left_out.iter().map(|left_out| left_out.platform.as_str()).collect();
        assert_eq!(platforms, ["linux/arm64", "linux/s390x"]);
        assert!(loaded.left_out.iter().all(|left_out| left_out.reference.as_deref() == Some("app:1")));
        assert_eq!(fixture.names(), [Some("app:1".into())]);
    }
}

#[test]
fn load_refuses_what_holds_no_image_and_leaves_nothing() {
    let refused = |archive: &[u8], sentence: &str| {
        let fixture = Fixture::new();
        let error = in_one_line(&fixture.load(archive).unwrap_err());
        assert!(error.contains(sentence), "{error}");
        fixture.check_empty();
        fixture.load(&three_layers("app:1").tar()).unwrap();
    };
    refused(&root(), "is a root file system");
    refused(&gzip(&root()), "is a root file system");
    refused(b"", "neither `manifest.json` nor `index.json`");
    let whole = gzip(&three_layers("app:1").tar());
    refused(&whole[..whole.len() / 2], "ends in the middle");
    refused(&whole[..whole.len() - 4], "");
    refused(&tar(&[("oci-layout", b"{}"), ("index.json", b"{}")]), "not a manifest");
    let mut several = three_layers("app:1").finish();
    several.insert("manifest.json".into(), b"[]".to_vec());
    several.remove("oci-layout");
    refused(&tar_of(&several), "lists no images");
    let mut climbing = tar(&[("oci-layout", b"{}"), ("blobs/x", b"")]);
    let at = climbing.windows(7).position(|window| window == b"blobs/x").unwrap();
    climbing[at..at + 7].copy_from_slice(b"../../x");
    refused(&climbing, "");
    let bomb = [tar(&[("oci-layout", b"{}"), ("index.json", &vec![b' '; 80 << 20])])].concat();
    refused(&gzip(&bomb), "");
}

#[test]
fn content_that_decayed_never_goes_out_whole() {
    let fixture = two_images();
    let layer = hex(&gzip(&root()));
    let path = fixture.oci().join("blobs/sha256").join(&layer);
    let bytes = fs::read(&path).unwrap();
    let mut decayed = bytes.clone();
    *decayed.last_mut().unwrap() ^= 1;
    for damage in [decayed, bytes[..bytes.len() - 1].to_vec(), [&bytes[..], b"x"].concat()] {
        fs::write(&path, damage).unwrap();
        let error = fixture.save(&["app:1"], ArchiveFormat::Docker).unwrap_err();
        assert!(matches!(&error, SaveError::Damaged { digest, .. } if digest.contains(&layer)), "{error}");
    }
    fs::write(&path, bytes).unwrap();
    fixture.save(&["app:1"], ArchiveFormat::Docker).unwrap();
}

#[test]
fn loads_of_the_same_content_at_once_end_in_one_image() {
    let fixture = Fixture::new();
    let archive = three_layers("app:1").tar();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    fixture.load(&archive).unwrap();
                }
            });
        }
    });
    assert_eq!((fixture.names(), fixture.blobs().len()), (vec![Some("app:1".into())], 5));
    fixture.remove("app:1").unwrap();
    fixture.check_empty();
}
