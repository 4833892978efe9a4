//! The tree against a map of paths, and transactions against doing them one after the other.

use proptest::prelude::*;

use super::*;
use crate::xenstore::path;

/// What is asked for, of one of a few paths.
#[derive(Clone, Debug)]
enum Step {
    Read(&'static str),
    List(&'static str),
    Write(&'static str, u8),
    Make(&'static str),
    Remove(&'static str),
}

/// The simplest store that answers as ours must.
#[derive(Clone, Default)]
struct Model(BTreeMap<String, String>);

impl Model {
    fn missing_made(&mut self, path: &str) {
        let mut above = Some(path);
        while let Some(at) = above.filter(|at| *at != "/") {
            self.0.entry(at.into()).or_default();
            above = path::parent(at);
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        let below = |at: &&String| path::parent(at) == Some(path);
        self.0.keys().filter(below).map(|at| at.rsplit('/').next().unwrap().into()).collect()
    }

    fn step(&mut self, step: &Step) -> Answered {
        let done = Ok("OK\0".to_owned());
        match *step {
            Step::Read(path) => self.0.get(path).cloned().ok_or(Refusal::Missing),
            Step::List(path) if path == "/" || self.0.contains_key(path) => {
                Ok(self.children(path).iter().map(|name| format!("{name}\0")).collect())
            }
            Step::List(_) => Err(Refusal::Missing),
            Step::Write(path, value) => {
                self.missing_made(path);
                self.0.insert(path.into(), value.to_string());
                done
            }
            Step::Make(path) => {
                self.missing_made(path);
                done
            }
            Step::Remove(path) => {
                let parent = path::parent(path).unwrap();
                if parent != "/" && !self.0.contains_key(parent) {
                    return Err(Refusal::Missing);
                }
                self.0.retain(|at, _| !path::is_within(at, path));
                done
            }
        }
    }
}

/// A transaction: its number, and what was done in it.
type Open = (u32, Vec<(Step, Answered)>);

fn real_step(world: &mut World, id: ConnId, number: u32, step: &Step) -> Answered {
    match step {
        Step::Read(path) => world.ask(id, Kind::Read, number, &format!("{path}\0")),
        Step::List(path) => world.ask(id, Kind::Directory, number, &format!("{path}\0")),
        Step::Write(path, value) => world.ask(id, Kind::Write, number, &format!("{path}\0{value}")),
        Step::Make(path) => world.ask(id, Kind::Mkdir, number, &format!("{path}\0")),
        Step::Remove(path) => world.ask(id, Kind::Rm, number, &format!("{path}\0")),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let path =
        prop::sample::select(vec!["/a", "/a/b", "/a/b/c", "/a/d", "/a-b", "/e", "/e/f", "/e/f/g"]);
    (path, 0_u8..5, any::<u8>()).prop_map(|(path, what, value)| match what {
        0 => Step::Read(path),
        1 => Step::List(path),
        2 => Step::Write(path, value),
        3 => Step::Make(path),
        _ => Step::Remove(path),
    })
}

/// Starts without the sign of life, which the model knows nothing of.
fn empty() -> (World, ConnId) {
    let mut world = World::default();
    let zero = world.join(0);
    world.remove(zero, "/tool").unwrap();
    (world, zero)
}

fn same(world: &World, model: &Model) {
    let mut found = BTreeMap::new();
    world.server.tree.walk(|path, node| {
        if path != "/" {
            found.insert(path.to_owned(), String::from_utf8(node.value.to_vec()).unwrap());
        }
    });
    assert_eq!(found, model.0);
    assert_eq!(world.server.tree.owned(domain(0)), found.len() + 1);
}

proptest! {
    #[test]
    fn the_tree_is_a_map_of_paths(steps in prop::collection::vec(step(), 0..200)) {
        let (mut world, id) = empty();
        let mut model = Model::default();
        for step in &steps {
            prop_assert_eq!(real_step(&mut world, id, 0, step), model.step(step), "{:?}", step);
        }
        same(&world, &model);
    }

    /// Four take turns, each in a transaction of its own or in none. Whoever commits must have been
    /// answered as if all of its steps had been done at that moment.
    #[test]
    fn what_commits_is_as_if_done_at_once(
        turns in prop::collection::vec((0_usize..4, step(), 0_u8..8), 0..200),
    ) {
        let (mut world, _) = empty();
        let mut model = Model::default();
        let ids: Vec<ConnId> = (0..4).map(|_| world.join(0)).collect();
        let mut open: Vec<Option<Open>> = vec![None; 4];
        for (who, step, what) in turns {
            let id = ids[who];
            match (&mut open[who], what) {
                (None, 0..4) => {
                    prop_assert_eq!(real_step(&mut world, id, 0, &step), model.step(&step));
                }
                (None, _) => open[who] = Some((world.start(id).unwrap(), Vec::new())),
                (Some((number, done)), 0..6) => {
                    let answer = real_step(&mut world, id, *number, &step);
                    done.push((step, answer));
                }
                (Some(_), end) => {
                    let (number, done) = open[who].take().unwrap();
                    match world.end(id, number, end == 6) {
                        Ok(_) if end == 6 => {
                            for (step, answer) in done {
                                prop_assert_eq!(model.step(&step), answer, "{:?}", step);
                            }
                        }
                        Ok(_) => {}
                        Err(refusal) => prop_assert_eq!(refusal, Refusal::Again),
                    }
                }
            }
        }
        same(&world, &model);
    }
}
