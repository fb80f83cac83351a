use std::collections::VecDeque;

use super::*;
use crate::types::Term;

const LIMITS: Limits = Limits { is_pressed: false, age: Duration::from_secs(3600), pinned_bytes: 0 };

fn cut(index: u64) -> Cut {
    let at = EntryId { index: LogIndex(index), term: Term(1) };
    Cut {
        at,
        reach: at.index,
        members: vec![NodeId(1), NodeId(2), NodeId(3)],
        manifest: Vec::new(),
        databases: BTreeMap::new(),
        only: None,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

#[test]
fn a_view_is_lent_again_to_whom_it_suits() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    let reuse_beyond = |to, have, shown, start| {
        views.reuse(to, (LogIndex(have), LogIndex(shown)), LogIndex(start), at(1)).map(|(id, _)| id)
    };
    let reuse = |to, have, start| reuse_beyond(to, have, have, start);
    assert_eq!(reuse(B, 10, 100), Some(id));
    assert_eq!(reuse(B, 10, 101), None, "the log would begin behind it");
    assert_eq!(reuse(B, 100, 50), None, "it has as much");
    assert_eq!(reuse(NodeId(4), 10, 50), None, "it is no member as of that entry");
    assert_eq!(views.counts(), (1, 2));
    let newer = views.lend(7, cut(200), A, at(2));
    assert_ne!(newer, id);
    assert_eq!(reuse(B, 10, 50), Some(newer), "the newest of those that fit");
    assert_eq!(reuse_beyond(B, 10, 201, 50), None, "it shows more, and so does this node by now");
    let mut further = cut(201);
    further.reach = LogIndex(240);
    let split = views.lend(7, further, A, at(2));
    assert_eq!(reuse_beyond(B, 10, 230, 50), Some(split), "its databases are as far, though it begins before that");
}

#[test]
fn a_lease_is_kept_by_asking_and_ends_by_silence() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    let everybody = |_| true;
    for second in [20, 40, 60] {
        assert!(views.renew(id, A, at(second)).is_some());
        assert_eq!(views.sweep(at(second), LIMITS, everybody), 0);
        assert_eq!(views.floor(), Some(LogIndex(100)));
    }
    assert!(views.renew(id, B, at(60)).is_none(), "it was lent to another node");
    assert_eq!(views.sweep(at(91), LIMITS, everybody), 0, "nobody uses it, but somebody may soon");
    assert_eq!((views.counts(), views.floor()), ((1, 0), None));
    assert!(views.renew(id, A, at(92)).is_none());
    assert_eq!(views.reuse(A, (LogIndex(1), LogIndex(1)), LogIndex(100), at(92)).map(|(again, _)| again), Some(id));
    assert_eq!(views.sweep(at(92 + 61), LIMITS, everybody), 1);
    assert_eq!(views.counts(), (0, 0));
}

#[test]
fn what_nobody_uses_goes_when_there_is_a_newer_one() {
    let views = Views::default();
    let first = views.lend(7, cut(100), A, at(0));
    views.lend(7, cut(200), B, at(1));
    assert_eq!(views.counts(), (2, 2));
    assert_eq!(views.give_back(first, A, Outcome::Installed, at(2)).map(|at| at.index), Some(LogIndex(100)));
    assert_eq!(views.give_back(first, A, Outcome::Installed, at(2)), None, "once");
    assert_eq!(views.counts(), (1, 1));
}

/// It was kept for a minute for somebody who might need it, and meanwhile nothing was checkpointed: a log of a gigabyte, whose limit was
/// 32 MiB.
#[test]
fn a_view_that_nobody_uses_goes_when_the_log_is_beyond_its_limit() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    let pressed = Limits { is_pressed: true, ..LIMITS };
    assert_eq!(views.sweep(at(1), pressed, |_| true), 0, "somebody uses it");
    views.give_back(id, A, Outcome::Installed, at(1));
    assert_eq!((views.sweep(at(1), LIMITS, |_| true), views.counts()), (0, (1, 0)), "somebody may need it");
    assert_eq!((views.sweep(at(1), pressed, |_| true), views.counts()), (1, (0, 0)));
}

/// Who finds no room asks again every few seconds, was lent the same view each time, and so kept the gates of its databases shut for
/// ever. Others may still use it; and it is not for strangers to close it.
#[test]
fn what_is_given_up_is_closed_at_once_unless_another_one_fetches_it() {
    use Outcome::{GivenUp, Installed, NotNeeded};
    for (outcome, stays) in [(GivenUp, false), (NotNeeded, true), (Installed, true)] {
        // Also if its lease has ended meanwhile.
        for silent in [false, true] {
            let views = Views::default();
            let id = views.lend(7, cut(100), A, at(0));
            if silent {
                assert_eq!((views.sweep(at(30), LIMITS, |_| true), views.counts()), (0, (1, 0)));
            }
            views.give_back(id, B, outcome, at(31));
            assert_eq!(views.counts(), (1, usize::from(!silent)), "nobody lent it to that one");
            views.give_back(id, A, outcome, at(31));
            assert_eq!(views.counts(), (usize::from(stays), 0), "{outcome:?}, silent: {silent}");
        }
        let views = Views::default();
        let id = views.lend(7, cut(100), A, at(0));
        views.reuse(B, (LogIndex(1), LogIndex(1)), LogIndex(1), at(1)).unwrap();
        views.give_back(id, A, outcome, at(2));
        assert_eq!(views.counts(), (1, 1), "{outcome:?}: the other one fetches");
        views.give_back(id, B, outcome, at(3));
        assert_eq!(views.counts().0, usize::from(stays), "{outcome:?}");
    }
}

/// Who was silent for too long, or whose view was closed, may have installed it all the same, and says so as soon as it can.
#[test]
fn who_lost_its_lease_may_still_say_that_it_has_installed() {
    for how in ["silence", "age", "passed", "given back"] {
        let views = Views::default();
        let id = views.lend(7, cut(100), A, at(0));
        match how {
            "silence" => _ = views.sweep(at(30), LIMITS, |_| true),
            "age" => _ = views.sweep(at(1), Limits { age: at(1), ..LIMITS }, |_| true),
            "passed" => views.close_before(LogIndex(101)),
            _ => _ = views.give_back(id, A, Outcome::Installed, at(1)),
        }
        assert_eq!(views.counts().1, 0, "{how}");
        let once = Some(LogIndex(100)).filter(|_| how != "given back");
        let said = |peer| views.give_back(id, peer, Outcome::Installed, at(31)).map(|at| at.index);
        assert_eq!((said(B), said(A), said(A)), (None, once, None), "{how}");
        // And the log is kept for it, if that has not passed it.
        assert_eq!(views.floor(), Some(LogIndex(100)).filter(|_| how != "passed"), "{how}");
    }
    // Not one of who is no member any more, nor a view of one database.
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    views.sweep(at(1), LIMITS, |node| node != A);
    assert_eq!(views.give_back(id, A, Outcome::Installed, at(1)), None);
}

/// One node and one entry, until it is installed; and nothing is kept for ever of who begins again and again.
#[test]
fn a_transfer_begins_once_and_is_over_when_it_is_installed() {
    let views = Views::default();
    let began = |peer, index| views.begins(peer, LogIndex(index));
    let first = views.lend(7, cut(100), A, at(0));
    assert_eq!((began(A, 100), began(A, 100), began(B, 100), began(B, 100)), (true, false, true, false));
    assert_eq!(
        (began(A, 200), began(A, 100)),
        (true, false),
        "back to the older one, as when the newer view was closed"
    );
    // Neither of these is its end.
    views.sweep(at(30), LIMITS, |_| true);
    assert!(!began(A, 100));
    let again = views.lend(7, cut(100), A, at(31));
    views.give_back(again, A, Outcome::GivenUp, at(32));
    views.give_back(again, A, Outcome::Installed, at(32));
    assert!(!began(A, 100), "it was given back already");
    // Who has installed one of them has passed those before as well; it may have lost its disk since.
    let installed = views.lend(7, cut(100), A, at(33));
    views.give_back(first, A, Outcome::Installed, at(34));
    views.give_back(installed, A, Outcome::Installed, at(34));
    assert_eq!((began(A, 200), began(B, 100)), (false, false));
    assert_eq!((began(A, 100), began(A, 100)), (true, false));
    // What the log has passed is lent to nobody any more, and who is no member is lent nothing.
    let kept = || views.books.lock().begun.values().map(BTreeSet::len).sum::<usize>();
    assert_eq!(kept(), 3);
    views.close_before(LogIndex(101));
    assert_eq!(kept(), 1);
    views.sweep(at(35), LIMITS, |peer| peer != A);
    assert!(views.books.lock().begun.is_empty());
}

#[test]
fn how_far_a_node_is_is_known_as_long_as_it_fetches() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    assert_eq!(views.progress(A), None);
    views.note_progress(id, A, (5, 10));
    assert_eq!((views.progress(A), views.progress(B)), (Some((5, 10)), None));
    views.give_back(id, A, Outcome::NotNeeded, at(1));
    assert_eq!(views.progress(A), None);
}

#[test]
fn age_and_removal_end_a_view_that_is_used() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    assert_eq!(views.sweep(at(1), LIMITS, |node| node != A), 0);
    assert_eq!(views.counts(), (1, 0), "a lease of who is no member any more is none");
    views.reuse(B, (LogIndex(1), LogIndex(1)), LogIndex(1), at(2));
    let young = Limits { age: at(10), ..LIMITS };
    for second in 3..10 {
        views.renew(id, B, at(second));
        assert_eq!(views.sweep(at(second), young, |_| true), 0);
    }
    assert_eq!(views.sweep(at(10), young, |_| true), 1);
}

#[test]
fn only_so_many_objects_are_made_at_a_time() {
    let views = Views::default();
    let mut sending: Vec<_> = (0..SENDERS).map(|_| views.begin_sending().unwrap()).collect();
    assert!(views.begin_sending().is_none());
    sending.pop();
    assert!(views.begin_sending().is_some());
}

fn object(first: u32) -> Object {
    Object::Ranges { database: DatabaseId(2), first, count: 1 }
}

/// What comes of it if `peer` asks for an object, and whoever is to make it does: whether it was there, or how long to wait.
fn asks(views: &Views, id: ViewId, peer: NodeId, first: u32, now: Duration) -> Result<bool, Duration> {
    match views.turn(id, peer, &object(first), now) {
        Turn::There(made) => {
            assert_eq!(*made, [first as u8; 9]);
            Ok(true)
        }
        Turn::Wait(left) => Err(left),
        Turn::Make(place) => {
            if let Some(place) = place {
                place.put(&[first as u8; 9]);
            }
            Ok(false)
        }
    }
}

fn on_shelf(views: &Views) -> usize {
    views.books.lock().shelf.len()
}

/// A view that A and B fetch from, and one object of it on the shelf.
fn shared() -> (Views, ViewId) {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    assert_eq!(asks(&views, id, A, 0, at(0)), Ok(false));
    assert_eq!(on_shelf(&views), 0, "nobody else fetches");
    assert!(views.reuse(B, (LogIndex(10), LogIndex(10)), LogIndex(100), at(0)).is_some());
    assert_eq!((asks(&views, id, B, 0, at(0)), asks(&views, id, B, 1, at(0))), (Ok(false), Ok(false)));
    assert_eq!((asks(&views, id, A, 1, at(0)), on_shelf(&views)), (Ok(true), 2));
    (views, id)
}

#[test]
fn what_is_on_the_shelf_goes_with_its_view_and_with_the_last_but_one_who_fetches() {
    for how in ["given back", "silence", "removed", "age", "passed", "closed"] {
        let (views, id) = shared();
        match how {
            "given back" => _ = views.give_back(id, A, Outcome::Installed, at(1)),
            "silence" => _ = views.sweep(at(30), LIMITS, |_| true),
            "removed" => _ = views.sweep(at(1), LIMITS, |node| node != B),
            "age" => _ = views.sweep(at(1), Limits { age: at(1), ..LIMITS }, |_| true),
            "passed" => views.close_before(LogIndex(101)),
            _ => views.close_all(),
        }
        assert_eq!(on_shelf(&views), 0, "{how}");
    }
    // One that is made while its view goes does not come there any more.
    let (views, id) = shared();
    let wanted = object(2);
    let Turn::Make(Some(place)) = views.turn(id, A, &wanted, at(0)) else { panic!("nobody made it") };
    views.give_back(id, B, Outcome::Installed, at(1));
    place.put(&[2; 9]);
    assert_eq!(on_shelf(&views), 0);
    // A newer view has nothing to do with it.
    let (views, _) = shared();
    views.lend(7, cut(200), NodeId(3), at(1));
    assert_eq!(on_shelf(&views), 2);
}

/// Nobody waits for a lock, and nobody for an object that came to nothing.
#[test]
fn an_object_in_the_making_is_asked_for_again() {
    let (views, id) = shared();
    let wanted = object(2);
    let Turn::Make(Some(place)) = views.turn(id, A, &wanted, at(0)) else { panic!("nobody made it") };
    assert_eq!(asks(&views, id, B, 2, at(0)), Err(MADE_SOON));
    drop(place);
    assert_eq!((asks(&views, id, B, 2, at(0)), asks(&views, id, A, 2, at(0))), (Ok(false), Ok(true)));
}

/// Two that began together, of which one is quicker: it waits for the other one, since what it was sent would not be on the shelf
/// any more.
#[test]
fn those_who_fetch_at_the_same_time_are_kept_together() {
    let (views, id) = shared();
    let (mut now, mut slow) = (at(0), 2);
    // As many questions as may be on their way at a time; one that has to wait is asked again behind the others.
    let first = 2 + super::super::ask::AHEAD as u32;
    let (mut quick, mut asked, mut made): (_, VecDeque<u32>, _) = (first, (2..first).collect(), Vec::new());
    while slow < 500 {
        for _ in 0..2 * asked.len() + AHEAD as usize {
            let Some(one) = asked.pop_front() else { break };
            match asks(&views, id, A, one, now) {
                Ok(was_there) => {
                    made.extend((!was_there).then_some(one));
                    asked.push_back(quick);
                    quick += 1;
                }
                Err(left) => {
                    assert_eq!(left, HOLD);
                    asked.push_back(one);
                }
            }
        }
        now += HOLD;
        for _ in 0..2 {
            let was_there = asks(&views, id, B, slow, now).expect("it is behind");
            made.extend((!was_there).then_some(slow));
            slow += 1;
        }
    }
    assert!(quick - first - slow <= AHEAD as u32, "{quick}");
    let all = made.len();
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), all, "some were made twice");
    assert!(on_shelf(&views) <= PLACES);
}

/// Somebody who does not ask any more, is slow for good or fetches other things costs the others next to nothing.
#[test]
fn whoever_is_ahead_does_not_wait_for_long() {
    for how in ["silent", "slow", "other things"] {
        let (views, id) = shared();
        let (mut now, mut waited, mut slow, mut taken) = (at(0), Duration::ZERO, 2, 0);
        for quick in 2..500 {
            while let Err(left) = asks(&views, id, A, quick, now) {
                (now, waited) = (now + left, waited + left);
                let again = Duration::from_millis(if how == "slow" { 250 } else { 100 });
                if how != "silent" && waited.as_millis() % again.as_millis() == 0 {
                    taken +=
                        u32::from(asks(&views, id, B, if how == "slow" { slow } else { 1000 + slow }, now) == Ok(true));
                    slow += 1;
                }
            }
        }
        let limit = if how == "silent" { ASKED } else { HELD_AT_FIRST + HELD_FOR_EACH * (taken + 1) + HOLD };
        assert!(waited <= limit && waited > Duration::ZERO, "{how}: waited for {waited:?}, {taken} objects taken");
    }
    // However much was shared before, and however far behind the other one begins anew: nobody is kept from an object for as long
    // as makes it give the source up.
    let (views, id) = shared();
    views.books.lock().all[0].from_shelf = 10_000;
    let mut now = at(0);
    for quick in 0..20 {
        let (mut waited, from) = (Duration::ZERO, now);
        while let Err(left) = asks(&views, id, A, quick, now) {
            (now, waited) = (now + left, waited + left);
            let _ = views.renew(id, B, now);
            views.books.lock().all[0].fetchers.entry(B).or_default().asked = now;
        }
        assert!(waited <= HELD_FOR_ONE, "object {quick}: {waited:?} from {from:?}");
        now += Duration::from_millis(1);
    }
    // Nor does anybody wait for one that is too far behind to find on the shelf what it wants.
    let (views, id) = shared();
    views.books.lock().all[0].from_shelf = 10_000;
    views.books.lock().all[0].fetchers.entry(A).or_default().objects = FAR + 10;
    assert_eq!(asks(&views, id, A, 3000, at(0)), Ok(false));
    // One that fetches alone waits for nobody, and the manifest is in memory for all of them.
    let (views, id) = shared();
    assert!((0..100).all(|_| matches!(views.turn(id, A, &Object::Manifest, at(0)), Turn::Make(None))));
    views.give_back(id, B, Outcome::Installed, at(0));
    assert!((0..100).all(|first| asks(&views, id, A, first, at(0)) == Ok(false)));
}
