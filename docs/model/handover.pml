/* Who has the guest: the commit and the hand-over, with every crash and every lost message.
 *
 *   spin -a -DFAULTS=3 handover.pml && cc -O2 -o pan pan.c && ./pan -a -f -N ends
 *
 * What survives a crash is global: both journals, and the guests, which are the hypervisors'. What a
 * process knows is local and lost when it dies. A message may be lost, and overtake another: a new
 * connection is not behind an old one. Faults are counted, so that what they interrupt can end.
 *
 * The messages have the names they have in the code (core/vmferry/wire/messages.py). With one of
 * these defined the protocol is wrong, and spin has to find it:
 *
 *   COMMIT_AFTER_GO   the source commits after it has said Go
 *   RESUME_FIRST      the source runs the guest again before it takes a commit back
 *   GUESS             the source takes a commit back because nobody answers
 *   DESTROY_FIRST     the source removes its guest before it has heard Running
 */
#ifndef FAULTS
#define FAULTS 2
#endif

mtype = { PendingMap, Ready, Go, Running, Attach, Resumed, Withdraw, Account };
mtype:guest = { runs, suspended, gone, paused, none };
mtype:step = { pushing, stopping, committing, doubting, releasing, late, waiting, rolling,
               uncommitting, withdrawing, taking, fencing, destroying, dead, finished };

/* durable */
bit committed;                      /* the source's journal */
bit closed;                         /* the source's journal has an outcome */
bit owner, withdrawn, ready;        /* the destination's journal */
mtype:guest here = runs, there = none;
bit fenced;                         /* the operator has switched the destination off */

byte faults = FAULTS;
chan to_there = [2] of { mtype };
chan to_here = [2] of { mtype, bit, bit };

inline tell_there(message)
{
    if
    :: full(to_there)               /* nobody reads: as good as lost */
    :: nfull(to_there) -> to_there ! message
    :: faults > 0 -> faults--
    fi
}

inline tell_here(message, first, second)
{
    if
    :: full(to_here)
    :: nfull(to_here) -> to_here ! message, first, second
    :: faults > 0 -> faults--
    fi
}

#define quiet (empty(to_here) && empty(to_there))

active proctype Source()
{
    mtype:step at = pushing;
    bit first, second;
    do
    :: at == finished -> break
    /* killed; whoever starts it again reads the journal */
    :: d_step { at != finished && at != dead && faults > 0 -> faults--; at = dead }
    :: at == dead && closed -> at = finished
    :: atomic { at == dead && !closed && committed -> tell_there(Attach); at = waiting }
    :: at == dead && !closed && !committed -> at = rolling

    /* STOP */
    :: atomic { at == pushing -> here = suspended; tell_there(PendingMap); at = stopping }
    :: atomic { at == stopping && to_here ?? [Ready, _, _] -> to_here ?? Ready, first, second; at = committing }
    :: at == stopping -> at = rolling                       /* the link broke, or patience ended */

    /* the commit */
#ifdef COMMIT_AFTER_GO
    :: atomic { at == committing -> tell_there(Go); at = late }
    :: d_step { at == late -> committed = 1; at = waiting }
#else
    :: d_step { at == committing -> committed = 1; at = doubting }
    :: at == doubting -> at = uncommitting                  /* writing it was interrupted */
    :: at == doubting -> at = releasing
#endif
#ifdef RESUME_FIRST
    :: d_step { at == uncommitting -> here = runs; at = late }
    :: d_step { at == late -> committed = 0; at = rolling }
#else
    :: d_step { at == uncommitting -> committed = 0; at = rolling }
#endif
#ifdef DESTROY_FIRST
    :: atomic { at == releasing -> here = gone; tell_there(Go); at = waiting }
#else
    :: atomic { at == releasing -> tell_there(Go); at = waiting }
#endif

    /* after the commit: until it is known who has the guest */
    :: atomic { at == waiting && quiet -> tell_there(Attach) }
    :: atomic { at == waiting && to_here ?? [Running, _, _] -> to_here ?? Running, first, second; at = destroying }
    :: atomic { at == waiting && to_here ?? [Resumed, _, _] ->
        to_here ?? Resumed, first, second;                  /* running? */
        at = (first -> destroying : releasing) }
    :: atomic { at == waiting && to_here ?? [Account, _, _] ->
        to_here ?? Account, first, second;                  /* owner? withdrawn? */
        if
        :: second -> at = taking
        :: !second && first -> at = fencing
        :: !second && !first -> tell_there(Withdraw)
        fi }
#ifdef GUESS
    :: at == waiting -> at = taking
#endif
    /* nothing answers, or the guest is lost there: the operator looks, and switches it off */
    :: at == fencing && there == runs -> at = waiting
    :: atomic { at == fencing && there != runs -> fenced = 1; there = none; at = taking }
    :: d_step { at == destroying -> here = gone; closed = 1; at = finished }

    /* the guest is the source's */
    :: d_step { at == taking -> committed = 0; at = rolling }
    :: d_step { at == rolling -> here = runs; at = withdrawing }
    :: atomic { at == withdrawing -> tell_there(Withdraw); closed = 1; at = finished }
    od
}

active proctype Destination()
{
    bit alive = 1, activating;
end:
    do
    :: fenced -> break
    /* killed: a guest that is held may be lost with its agent, one that runs is not */
    :: atomic { !fenced && alive && faults > 0 ->
        faults--; alive = 0; activating = 0;
        if
        :: there == paused -> there = none
        :: true
        fi }
    :: d_step { !fenced && !alive ->
        alive = 1;
        if
        :: owner && there == paused -> there = runs
        :: !owner && there == none -> withdrawn = 1
        :: else
        fi }
    :: atomic { !fenced && alive && to_there ?? [PendingMap] ->
        to_there ?? PendingMap;
        if
        :: !withdrawn -> ready = 1; there = paused; tell_here(Ready, 0, 0)
        :: else
        fi }
    :: atomic { !fenced && alive && to_there ?? [Go] ->
        to_there ?? Go;
        if
        :: !owner && ready && !withdrawn && there == paused -> owner = 1; activating = 1
        :: owner && there == runs -> tell_here(Running, 0, 0)
        :: else
        fi }
    :: atomic { !fenced && alive && activating -> there = runs; activating = 0; tell_here(Running, 0, 0) }
    :: atomic { !fenced && alive && !activating && to_there ?? [Attach] ->
        to_there ?? Attach;
        if
        :: there == none -> tell_here(Account, owner, withdrawn)
        :: else -> tell_here(Resumed, (there == runs), 0)
        fi }
    :: atomic { !fenced && alive && !activating && to_there ?? [Withdraw] ->
        to_there ?? Withdraw;
        if
        :: !owner -> withdrawn = 1; there = none
        :: else
        fi;
        tell_here(Account, owner, withdrawn) }
    /* told by an operator that the source has closed the job */
    :: d_step { !fenced && alive && there == paused && !owner && closed && !committed -> withdrawn = 1; there = none }
    od
}

#define both (here == runs && there == runs)
#define nowhere (here == gone && there != runs)
#define settled ((here == runs && there == none) || (here == gone && there == runs))

ltl one { [] !both }                        /* at most one owner */
ltl some { [] !nowhere }                    /* no owner lost */
ltl ends { <> [] (closed && settled) }      /* every job can be brought to its end */
