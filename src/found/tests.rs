//! What `found.rs` promises: never two clusters, one in the end, and a wiped disk founds nothing.

use std::collections::VecDeque;

use super::*;

/// A small generator: same seed, same run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

struct Node {
    /// What is on its disk.
    disk: Identity,
    /// `None` while it is down.
    running: Option<Founding>,
}

/// Nodes, their disks, and the messages that are under way.
struct World {
    nodes: Vec<Node>,
    list: Vec<(NodeId, String)>,
    under_way: VecDeque<(NodeId, NodeId, FoundMessage)>,
    /// Every cluster that reached a disk.
    founded: BTreeSet<ClusterId>,
    warnings: Vec<String>,
    dice: Dice,
    lives: u64,
}

impl World {
    fn new(count: u16, seed: u64) -> World {
        let list: Vec<_> = (1..=count).map(|n| (NodeId(n), format!("node{n}:1"))).collect();
        let nodes = list
            .iter()
            .map(|(node, _)| Node { disk: Identity::new(*node, Incarnation(u64::from(node.0))), running: None })
            .collect();
        World {
            nodes,
            list,
            under_way: VecDeque::new(),
            founded: BTreeSet::new(),
            warnings: Vec::new(),
            dice: Dice(seed),
            lives: 100,
        }
    }

    fn start(&mut self, i: usize) {
        let founding = Founding::new(self.nodes[i].disk.clone(), &self.list).unwrap();
        self.nodes[i].running = Some(founding);
    }

    fn wipe(&mut self, i: usize) {
        self.lives += 1;
        self.nodes[i] = Node { disk: Identity::new(NodeId(i as u16 + 1), Incarnation(self.lives)), running: None };
    }

    /// One event at one node; `crash` 1 loses what it would persist, 2 persists and then sends nothing.
    fn event(&mut self, i: usize, event: Event, crash: usize) {
        let random = self.dice.next();
        let Some(founding) = &mut self.nodes[i].running else { return };
        founding.on_event(event, random);
        let effects = founding.take_effects();
        if let Some(identity) = effects.persist {
            if crash == 1 {
                self.nodes[i].running = None;
                return;
            }
            // Through its bytes, as the shell does.
            self.nodes[i].disk = Identity::decode(&identity.encode()).unwrap();
            self.founded.extend(identity.cluster());
        }
        if crash == 2 {
            self.nodes[i].running = None;
            return;
        }
        self.warnings.extend(effects.warn);
        let from = NodeId(i as u16 + 1);
        for (to, message) in effects.send {
            let message = FoundMessage::decode(&message.encode()).unwrap();
            self.under_way.push_back((from, to, message));
        }
    }

    fn deliver(&mut self, at: usize, crash: usize) {
        if let Some((from, to, message)) = self.under_way.remove(at) {
            self.event(usize::from(to.0) - 1, Event::Message(from, message), crash);
        }
    }

    /// All up, nothing lost, for so many rounds.
    fn calm(&mut self, rounds: usize) {
        for i in 0..self.nodes.len() {
            if self.nodes[i].running.is_none() {
                self.start(i);
            }
        }
        for _ in 0..rounds {
            for i in 0..self.nodes.len() {
                self.event(i, Event::Tick, 0);
            }
            while !self.under_way.is_empty() {
                self.deliver(0, 0);
            }
        }
    }

    fn clusters(&self) -> Vec<Option<ClusterId>> {
        self.nodes.iter().map(|node| node.disk.cluster()).collect()
    }

    /// Anything at all, but for wiped disks. The lowest `late` nodes do not run in the first half.
    fn storm(&mut self, steps: usize, late: usize) {
        for step in 0..steps {
            let first = if step < steps / 2 { late } else { 0 };
            let i = first + self.dice.below(self.nodes.len() - first);
            let crash = if self.dice.one_in(12) { 1 + self.dice.below(2) } else { 0 };
            match self.dice.below(10) {
                0..=2 if self.nodes[i].running.is_none() => self.start(i),
                0..=2 => self.event(i, Event::Tick, crash),
                3 if self.dice.one_in(5) => self.nodes[i].running = None,
                4 => {
                    let peer = NodeId(1 + self.dice.below(self.nodes.len()) as u16);
                    let cluster = self.nodes[usize::from(peer.0) - 1].disk.cluster();
                    self.event(i, Event::Connected(peer, cluster), crash);
                }
                _ if self.under_way.is_empty() => {}
                5 => {
                    let at = self.dice.below(self.under_way.len());
                    self.under_way.remove(at);
                }
                6 => {
                    let at = self.dice.below(self.under_way.len());
                    let again = self.under_way[at].clone();
                    self.under_way.push_back(again);
                }
                _ => {
                    let at = self.dice.below(self.under_way.len());
                    self.deliver(at, crash);
                }
            }
        }
    }
}

/// Shows INV-14.
#[test]
fn three_and_five_nodes_found_one_cluster_whatever_happens_and_end() {
    let mut by_others = 0;
    for count in [1, 2, 3, 4, 5] {
        for seed in 0..800 {
            let mut world = World::new(count, seed);
            let late = world.dice.below(usize::from(count));
            world.storm(40 + (seed as usize % 8) * 150, late);
            assert!(world.founded.len() <= 1, "{count} nodes, seed {seed}: {:?}", world.founded);
            world.calm(PATIENCE as usize * 6);
            assert_eq!(world.founded.len(), 1, "{count} nodes, seed {seed}: {:?}", world.founded);
            let cluster = world.founded.first().copied();
            assert!(world.clusters().iter().all(|found| *found == cluster), "{count} nodes, seed {seed}");
            for node in &world.nodes {
                let Belongs::Founded(genesis) = &node.disk.belongs else { panic!("seed {seed}") };
                let bound = genesis.members.iter().filter(|member| member.incarnation.is_some()).count();
                assert!(bound > usize::from(count) / 2 && genesis.members.len() == usize::from(count));
                by_others += usize::from(genesis.founder != NodeId(1));
            }
        }
    }
    assert!(by_others > 100, "the storm lets other nodes than the first found too: {by_others}");
}

#[test]
fn promises_move_and_are_released() {
    // Node 3 stands for itself, then 2 does and gets it, then 1 comes and gets both; nothing is founded in between.
    let mut world = World::new(5, 1);
    for i in [2, 1] {
        world.start(i);
        for _ in 0..=PATIENCE * 4 {
            world.event(i, Event::Tick, 0);
        }
    }
    while !world.under_way.is_empty() {
        world.deliver(0, 0);
    }
    let promised = |world: &World, i: usize| world.nodes[i].disk.promised.map(|promise| promise.founder);
    assert_eq!((promised(&world, 1), promised(&world, 2)), (Some(NodeId(2)), Some(NodeId(2))));
    assert_eq!(world.nodes[2].running.as_ref().unwrap().stuck_on(), Some(NodeId(2)));
    world.start(0);
    // The ask reaches node 3 first: it is promised to 2, and only 2 can release it.
    world.event(0, Event::Tick, 0);
    let ask_3 = world.under_way.iter().position(|(_, to, _)| *to == NodeId(3)).unwrap();
    world.deliver(ask_3, 0);
    assert_eq!(promised(&world, 2), Some(NodeId(2)));
    world.under_way.retain(|(_, to, _)| *to == NodeId(2));
    world.deliver(0, 0);
    assert_eq!(promised(&world, 1), Some(NodeId(1)));
    world.under_way.retain(|(_, to, message)| *to == NodeId(3) && matches!(message, FoundMessage::Release { .. }));
    assert_eq!(world.under_way.len(), 1, "node 2 releases node 3");
    world.deliver(0, 0);
    assert_eq!(world.nodes[2].running.as_ref().unwrap().stuck_on(), None);
    assert!(world.founded.is_empty());
    for _ in 0..2 {
        for i in [0, 1, 2] {
            world.event(i, Event::Tick, 0);
        }
        while !world.under_way.is_empty() {
            world.deliver(0, 0);
        }
    }
    assert_eq!(world.founded.len(), 1);
    assert_eq!(promised(&world, 2), Some(NodeId(1)));
}

#[test]
fn a_list_of_one_founds_at_once() {
    let mut world = World::new(1, 7);
    world.start(0);
    world.event(0, Event::Tick, 0);
    assert_eq!(world.founded.len(), 1);
}

#[test]
fn a_minority_founds_nothing_and_a_majority_does() {
    for (count, up, founds) in [(3, 1, false), (3, 2, true), (5, 2, false), (5, 3, true), (4, 2, false)] {
        let mut world = World::new(count, 3);
        for i in 0..up {
            world.start(i);
        }
        for _ in 0..100 {
            for i in 0..up {
                world.event(i, Event::Tick, 0);
            }
            while !world.under_way.is_empty() {
                world.deliver(0, 0);
            }
        }
        assert_eq!(!world.founded.is_empty(), founds, "{up} of {count}");
    }
}

/// Shows INV-14.
#[test]
fn wiped_disks_cannot_found_a_second_cluster_beside_a_majority() {
    for seed in 0..200 {
        let count = [3, 5][seed as usize % 2];
        let mut world = World::new(count, seed);
        world.calm(PATIENCE as usize);
        let Belongs::Founded(genesis) = world.nodes[0].disk.belongs.clone() else { panic!("seed {seed}") };
        let minority = usize::from(count) / 2;
        let mut wiped = BTreeSet::new();
        while wiped.len() < minority {
            wiped.insert(world.dice.below(usize::from(count)));
        }
        for i in &wiped {
            world.wipe(*i);
        }
        // Those with data are out of reach at first, then they come back.
        for i in &wiped {
            world.start(*i);
        }
        world.storm(400, 0);
        world.calm(PATIENCE as usize * 6);
        assert_eq!(world.founded.len(), 1, "seed {seed}");
        for i in &wiped {
            // One that was not bound may come in with its second disk: its first one never counted.
            let bound = genesis.members[*i].incarnation.is_some();
            assert_eq!(world.nodes[*i].disk.cluster().is_none(), bound, "seed {seed}: node {}", i + 1);
            let told = format!("remove node {0} and join it again under a new id", i + 1);
            assert_eq!(world.warnings.iter().any(|text| text.contains(&told)), bound, "seed {seed}");
        }
    }
}

#[test]
fn a_promise_to_a_founder_whose_disk_was_wiped_does_not_count_for_its_second_life() {
    let mut world = World::new(5, 1);
    for i in 0..3 {
        world.start(i);
    }
    world.event(0, Event::Tick, 0);
    world.under_way.retain(|(_, to, _)| *to == NodeId(2));
    world.deliver(0, 0);
    assert_eq!(world.nodes[1].disk.promised.map(|promise| promise.incarnation), Some(Incarnation(1)));
    world.under_way.clear();
    world.wipe(0);
    for i in 0..3 {
        world.start(i);
    }
    for _ in 0..50 {
        for i in 0..3 {
            world.event(i, Event::Tick, 0);
        }
        while !world.under_way.is_empty() {
            world.deliver(0, 0);
        }
    }
    assert!(world.founded.is_empty(), "1 and 3 are no majority of five, and 2 is bound to the first life of 1");
    assert!(world.warnings.iter().any(|text| text.contains("disk was wiped")), "{:?}", world.warnings);
}

#[test]
fn another_list_is_refused_and_said() {
    let mut world = World::new(3, 1);
    world.start(0);
    let mut other = world.list.clone();
    other[2].1 = "elsewhere:9".to_string();
    let founding = Founding::new(world.nodes[1].disk.clone(), &other).unwrap();
    world.nodes[1].running = Some(founding);
    world.event(0, Event::Tick, 0);
    while !world.under_way.is_empty() {
        world.deliver(0, 0);
    }
    assert!(world.founded.is_empty());
    assert_eq!(world.warnings.len(), 2, "both sides say so: {:?}", world.warnings);
    assert!(world.warnings[0].contains("give every node the same list"));
}

/// Whom this node does not list is complained of as long as it asks.
#[test]
fn who_asks_without_being_listed_is_forgotten_when_it_stops() {
    let list = [(NodeId(1), "a:1".to_string()), (NodeId(2), "a:2".to_string())];
    let mut founding = Founding::new(Identity::new(NodeId(1), Incarnation(1)), &list).unwrap();
    let ask = || Event::Message(NodeId(9), FoundMessage::Ask { list: 7, incarnation: Incarnation(9) });
    founding.on_event(ask(), 1);
    (1..SILENCE).for_each(|_| founding.on_event(Event::Tick, 1));
    founding.on_event(ask(), 1);
    (1..SILENCE).for_each(|_| founding.on_event(Event::Tick, 1));
    assert_eq!(founding.obstacles().len(), 1, "{:?}", founding.obstacles());
    founding.on_event(Event::Tick, 1);
    assert_eq!(founding.obstacles(), [] as [String; 0]);
}

#[test]
fn bad_lists_are_refused() {
    let identity = Identity::new(NodeId(1), Incarnation(1));
    let list = |ids: &[u16]| ids.iter().map(|n| (NodeId(*n), "a:1".to_string())).collect::<Vec<_>>();
    let refused = |list: &[(NodeId, String)]| Founding::new(identity.clone(), list).err();
    assert_eq!(refused(&list(&[1, 2])), None);
    assert_eq!(refused(&list(&[2, 3])), Some(BadList::NotListed(NodeId(1))));
    assert_eq!(refused(&list(&[1, 2, 2])), Some(BadList::Twice(NodeId(2))));
    assert_eq!(refused(&list(&[0, 1])), Some(BadList::Zero));
    for (n, ok) in [(254u16, true), (255, true), (256, false)] {
        assert_eq!(refused(&list(&(1..=n).collect::<Vec<_>>())).is_none(), ok, "{n}");
    }
}
