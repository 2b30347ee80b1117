//! The stages of a Dockerfile and who needs whom: names, numbers, named contexts, triggers, circles.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Base, Globals, ImageSource, NamedContext, Note, NoteKind, Options, Origin, Platform, STAGES_MAX, STEPS_MAX,
    TRIGGERS_MAX,
};
use crate::builder::dockerfile::mount::from_of;
use crate::builder::dockerfile::{self, Command, Dockerfile, From, Instruction};
use crate::builder::source::{Complaint, Source, Span, Spanned, Word};
use crate::builder::suggest::closest;
use crate::image::reference::Reference;

/// The base that has nothing.
const SCRATCH: &str = "scratch";

/// An instruction of a stage, wherever it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) instruction: Instruction,
    /// Index of the instruction in the Dockerfile.
    pub(super) index: usize,
    /// Where to point: for a trigger of an image, at the FROM.
    pub(super) span: Span,
    pub(super) is_trigger: bool,
}

/// A stage as it is written, with its FROM resolved.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: Option<String>,
    pub(super) from_span: Span,
    pub(super) base: Base,
    pub(super) platform: Platform,
    pub(super) instructions: Vec<Placed>,
    /// The stages that it needs, and where it says so.
    needs: BTreeMap<usize, Span>,
}

/// All stages.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) notes: Vec<Note>,
    contexts: BTreeMap<String, NamedContext>,
}

impl Graph {
    /// Reads the stages and finds out what they need.
    ///
    /// # Errors
    /// A base that there cannot be, too many stages or steps.
    pub(super) fn read(dockerfile: &Dockerfile, options: &Options, globals: &Globals) -> Result<Graph, Complaint> {
        let mut graph = Graph { nodes: Vec::new(), notes: Vec::new(), contexts: options.contexts.clone() };
        for (index, instruction) in dockerfile.instructions.iter().enumerate() {
            match &instruction.command {
                Command::From(from) => {
                    if graph.nodes.len() == STAGES_MAX {
                        let message = format!("the file has more than {STAGES_MAX} stages");
                        return Err(Complaint::new(instruction.span, message));
                    }
                    graph.add(instruction, index, from, options, globals)?;
                }
                Command::Arg(_) if graph.nodes.is_empty() => {}
                other => {
                    let Some(stage) = graph.nodes.last_mut() else {
                        return Err(Complaint::new(
                            instruction.span,
                            format!("{} comes before the first FROM", other.name()),
                        )
                        .hint("only ARG may come before FROM; start with `FROM image`"));
                    };
                    let (instruction, span) = (instruction.clone(), instruction.span);
                    stage.instructions.push(Placed { instruction, index, span, is_trigger: false });
                }
            }
        }
        if graph.nodes.is_empty() {
            let span = dockerfile.instructions.first().map(|first| first.span).unwrap_or_default();
            return Err(Complaint::new(span, "the file has no stage").hint("start with `FROM image`"));
        }
        graph.add_triggers(dockerfile, options)?;
        graph.find_needs()?;
        Ok(graph)
    }

    fn add(
        &mut self,
        instruction: &Instruction,
        index: usize,
        from: &From,
        options: &Options,
        globals: &Globals,
    ) -> Result<(), Complaint> {
        let platform = match &from.platform {
            Some(word) => {
                let resolved = globals.resolve(word)?;
                self.note_unmatched(&resolved.unmatched, word.span, index, globals);
                if resolved.text.is_empty() {
                    return Err(Complaint::new(word.span, "the platform is empty")
                        .hint("give the argument a default above FROM, or a value with --build-arg"));
                }
                Platform::parse(&resolved.text).map_err(|error| complaint_of(word.span, &error.to_string()))?
            }
            None => options.platform.clone(),
        };
        let resolved = globals.resolve(&from.base)?;
        self.note_unmatched(&resolved.unmatched, from.base.span, index, globals);
        let base = self.base(&resolved.text, &from.base, &platform).map_err(|complaint| {
            match resolved.unmatched.iter().find(|name| !globals.is_declared(name)) {
                Some(name) => match closest(name, globals.names()) {
                    Some(meant) => complaint.hint(format!("`{name}` is not declared; did you mean {meant}?")),
                    None => complaint.hint(format!("declare it with `ARG {name}=…` above the first FROM")),
                },
                None => complaint,
            }
        })?;
        if let Base::Image(image) = &base
            && let Some(facts) = options.bases.get(image)
            && !facts.platform.agrees(&platform)
        {
            let kind = NoteKind::BasePlatform(resolved.text, platform.clone(), facts.platform.clone());
            self.notes.push(Note { span: from.base.span, instruction: index, kind });
        }
        let needs = match &base {
            Base::Stage(stage) => BTreeMap::from([(*stage, from.base.span)]),
            _ => BTreeMap::new(),
        };
        // A stage on top of a stage is for the same platform, unless it says otherwise.
        let platform = match &base {
            Base::Stage(stage) if from.platform.is_none() => self.nodes[*stage].platform.clone(),
            _ => platform,
        };
        let name = from.name.as_ref().map(|name| name.value.to_ascii_lowercase());
        let instructions = Vec::new();
        self.nodes.push(Node { name, from_span: instruction.span, base, platform, instructions, needs });
        Ok(())
    }

    fn note_unmatched(&mut self, names: &BTreeSet<String>, span: Span, instruction: usize, globals: &Globals) {
        for name in names.iter().filter(|name| !globals.is_declared(name)) {
            let meant = closest(name, globals.names()).map(str::to_owned);
            self.notes.push(Note { span, instruction, kind: NoteKind::UndefinedArgument(name.clone(), meant) });
        }
    }

    fn base(&self, name: &str, word: &Word, platform: &Platform) -> Result<Base, Complaint> {
        if name.is_empty() {
            return Err(Complaint::new(word.span, format!("the name of the base `{}` is empty", word.value))
                .hint("give the argument a default above FROM, or a value with --build-arg"));
        }
        if let Some(context) = self.context(name) {
            return Ok(match context {
                NamedContext::Folder(_) => Base::Context(name.to_owned()),
                NamedContext::Image(image) => {
                    Base::Image(ImageSource { reference: image.clone(), platform: platform.clone() })
                }
            });
        }
        if name == SCRATCH {
            return Ok(Base::Scratch);
        }
        // The latest of several stages with the same name is meant.
        let is_named = |node: &Node| node.name.as_deref() == Some(name.to_ascii_lowercase().as_str());
        match self.nodes.iter().rposition(is_named) {
            Some(stage) => Ok(Base::Stage(stage)),
            None => Ok(Base::Image(image(name, word.span, platform)?)),
        }
    }

    /// A context that was given under a name, or under another form of it.
    fn context(&self, name: &str) -> Option<&NamedContext> {
        let canonical = || Reference::parse(name).ok().map(|reference| reference.canonical());
        self.contexts.get(name).or_else(|| self.contexts.get(&canonical()?))
    }

    /// Puts the triggers of each base in front of a stage's own instructions.
    fn add_triggers(&mut self, dockerfile: &Dockerfile, options: &Options) -> Result<(), Complaint> {
        let mut count: usize = self.nodes.iter().map(|node| node.instructions.len()).sum();
        for stage in 0..self.nodes.len() {
            let node = &self.nodes[stage];
            let triggers = match &node.base {
                Base::Stage(base) => own_triggers(&self.nodes[*base]),
                Base::Image(image) => match options.bases.get(image) {
                    Some(facts) => foreign_triggers(&facts.on_build, node.from_span, dockerfile)?,
                    None => Vec::new(),
                },
                _ => Vec::new(),
            };
            count += triggers.len();
            if count > STEPS_MAX {
                return Err(Complaint::new(node.from_span, format!("the build has more than {STEPS_MAX} steps")));
            }
            self.nodes[stage].instructions.splice(0..0, triggers);
        }
        Ok(())
    }

    fn find_needs(&mut self) -> Result<(), Complaint> {
        for stage in 0..self.nodes.len() {
            let mut needs = BTreeMap::new();
            for placed in &self.nodes[stage].instructions {
                for name in sources_of(&placed.instruction) {
                    let at = Spanned::new(name.value.clone(), if placed.is_trigger { placed.span } else { name.span });
                    if let Origin::Stage(other) = self.origin(&at, &self.nodes[stage].platform)? {
                        needs.entry(other).or_insert(at.span);
                    }
                }
            }
            self.nodes[stage].needs.extend(needs);
        }
        Ok(())
    }

    /// What the value of a `--from` names.
    ///
    /// # Errors
    /// A number that is no stage, a name that no image can have.
    pub(super) fn origin(&self, word: &Word, platform: &Platform) -> Result<Origin, Complaint> {
        let name = word.value.as_str();
        match self.context(name) {
            Some(NamedContext::Folder(_)) => return Ok(Origin::Named(name.to_owned())),
            Some(NamedContext::Image(image)) => {
                return Ok(Origin::Image(ImageSource { reference: image.clone(), platform: platform.clone() }));
            }
            None => {}
        }
        if name.contains('$') {
            return Err(Complaint::new(word.span, "`from` takes no variables").hint(
                "name the image in a stage of its own, as in `FROM image:${VERSION} AS tools`, and copy from that",
            ));
        }
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
            return match name.parse::<usize>() {
                Ok(index) if index < self.nodes.len() => Ok(Origin::Stage(index)),
                _ => Err(Complaint::new(word.span, format!("there is no stage {name}"))
                    .hint(format!("stages are counted from 0, and the last one here is {}", self.nodes.len() - 1))),
            };
        }
        if name == SCRATCH {
            return Err(Complaint::new(word.span, "`scratch` has no files to copy"));
        }
        let lower = name.to_ascii_lowercase();
        match self.nodes.iter().rposition(|node| node.name.as_deref() == Some(lower.as_str())) {
            Some(stage) => Ok(Origin::Stage(stage)),
            None => {
                Ok(Origin::Image(image(name, word.span, platform).map_err(|complaint| self.suggest(complaint, name))?))
            }
        }
    }

    fn suggest(&self, complaint: Complaint, name: &str) -> Complaint {
        let names = self.nodes.iter().filter_map(|node| node.name.as_deref());
        match closest(name, names) {
            Some(meant) => complaint.hint(format!("did you mean the stage `{meant}`?")),
            None => complaint,
        }
    }

    /// The stage that is built.
    ///
    /// # Errors
    /// A target that is no stage.
    pub(super) fn target(&self, options: &Options) -> Result<usize, Complaint> {
        let last = self.nodes.len() - 1;
        let Some(target) = &options.target else { return Ok(last) };
        let lower = target.to_ascii_lowercase();
        if let Some(stage) = self.nodes.iter().rposition(|node| node.name.as_deref() == Some(lower.as_str())) {
            return Ok(stage);
        }
        if let Some(index) = target.parse::<usize>().ok().filter(|index| *index <= last) {
            return Ok(index);
        }
        let names: Vec<&str> = self.nodes.iter().filter_map(|node| node.name.as_deref()).collect();
        let complaint = Complaint::new(self.nodes[last].from_span, format!("there is no stage `{target}` to build"));
        Err(match closest(target, names.iter().copied()) {
            Some(meant) => complaint.hint(format!("did you mean {meant}?")),
            None if names.is_empty() => {
                complaint.hint("no stage of the file has a name; give one with `FROM image AS name`")
            }
            None => complaint.hint(format!("there are {}", names.join(", "))),
        })
    }

    /// The stages that are needed, each after those that it needs itself.
    ///
    /// # Errors
    /// Stages that need each other.
    pub(super) fn order(&self, target: usize, all: bool) -> Result<Vec<usize>, Complaint> {
        let mut order = Vec::new();
        let mut state = vec![Visit::New; self.nodes.len()];
        let starts = std::iter::once(target).chain((0..self.nodes.len()).filter(|_| all));
        for start in starts {
            self.visit(start, &mut state, &mut order)?;
        }
        Ok(order)
    }

    /// Goes through what a stage needs, depth first, on a stack of its own: a chain may be long.
    fn visit(&self, start: usize, state: &mut [Visit], order: &mut Vec<usize>) -> Result<(), Complaint> {
        let mut stack: Vec<(usize, Vec<(usize, Span)>)> = Vec::new();
        let open = |stage: usize, state: &mut [Visit]| {
            state[stage] = Visit::Open;
            (stage, self.nodes[stage].needs.iter().map(|(stage, span)| (*stage, *span)).collect::<Vec<_>>())
        };
        if state[start] == Visit::New {
            stack.push(open(start, state));
        }
        while let Some((stage, rest)) = stack.last_mut() {
            let Some((next, span)) = rest.pop() else {
                state[*stage] = Visit::Done;
                order.push(*stage);
                stack.pop();
                continue;
            };
            match state[next] {
                Visit::Done => {}
                Visit::New => stack.push(open(next, state)),
                Visit::Open => {
                    let circle = stack.iter().map(|(stage, _)| *stage).skip_while(|stage| *stage != next);
                    let names: Vec<String> = circle.chain([next]).map(|stage| self.label(stage)).collect();
                    return Err(Complaint::new(span, format!("the stages need each other: {}", names.join(" needs ")))
                        .hint("move what both need into a stage of its own"));
                }
            }
        }
        Ok(())
    }

    fn label(&self, stage: usize) -> String {
        self.nodes[stage].name.clone().unwrap_or_else(|| format!("stage {stage}"))
    }

    /// The stages that a stage needs.
    pub(super) fn needs(&self, stage: usize) -> Vec<usize> {
        self.nodes[stage].needs.keys().copied().collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

/// An image by a name of a Dockerfile.
fn image(name: &str, span: Span, platform: &Platform) -> Result<ImageSource, Complaint> {
    let reference = Reference::parse(name).map_err(|error| complaint_of(span, &error.to_string()))?;
    Ok(ImageSource { reference: reference.canonical(), platform: platform.clone() })
}

/// An error with its hint in the second line, at a place.
pub(super) fn complaint_of(span: Span, error: &str) -> Complaint {
    match error.split_once("\nhint: ") {
        Some((message, hint)) => Complaint::new(span, message).hint(hint),
        None => Complaint::new(span, error),
    }
}

/// The names behind `from` in an instruction.
fn sources_of(instruction: &Instruction) -> Vec<Word> {
    match &instruction.command {
        Command::Copy(copy) => copy.from.iter().cloned().collect(),
        Command::Run(run) => run.mounts.iter().filter_map(from_of).collect(),
        _ => Vec::new(),
    }
}

/// What the ONBUILD instructions of a stage do in those on top of it.
fn own_triggers(base: &Node) -> Vec<Placed> {
    let triggers = base.instructions.iter().filter_map(|placed| match &placed.instruction.command {
        Command::Onbuild(inner) => {
            let mut inner = (**inner).clone();
            inner.heredocs.clone_from(&placed.instruction.heredocs);
            Some(Placed { instruction: inner, index: placed.index, span: placed.span, is_trigger: true })
        }
        _ => None,
    });
    triggers.collect()
}

/// The triggers of an image, which stand in no file that can be pointed into.
fn foreign_triggers(texts: &[String], from: Span, dockerfile: &Dockerfile) -> Result<Vec<Placed>, Complaint> {
    if texts.len() > TRIGGERS_MAX {
        return Err(Complaint::new(from, format!("the base has more than {TRIGGERS_MAX} ONBUILD triggers")));
    }
    let index = dockerfile.instructions.iter().position(|instruction| instruction.span == from).unwrap_or(0);
    let mut placed = Vec::new();
    for text in texts {
        let read = dockerfile::parse(&Source::new("ONBUILD", text.as_str())).map_err(|complaint| {
            Complaint::new(from, format!("the base has an ONBUILD trigger that cannot be read: {}", complaint.message))
        })?;
        for instruction in read.instructions {
            if matches!(instruction.command, Command::From(_) | Command::Onbuild(_) | Command::Maintainer(_)) {
                let name = instruction.command.name();
                return Err(Complaint::new(
                    from,
                    format!("the base has an ONBUILD trigger with {name}, which cannot be one"),
                ));
            }
            placed.push(Placed { instruction, index, span: from, is_trigger: true });
        }
    }
    Ok(placed)
}
