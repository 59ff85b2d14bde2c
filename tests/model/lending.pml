/* Lending: a port that an ancestor holds, for a process that wants it under the same name. */

/* Our ancestors, as far as they are there: a link a step, as one look at a process tells its start
 * time and its parent. */
inline walk_up()
{
    atomic {
        at = PARENT_PID(me);
        if
        :: at == 0 -> goto done
        :: else
        fi
    }
    do
    :: atomic {
            q = has_pid[at];
            chain[k] = q;
            k++;
            at = (q == 0 -> 0 : PARENT_PID(q - 1));
            if
            :: at == 0 || k == DEPTH -> break
            :: else
            fi
        }
    od
}

#define SAME(a, b) \
    ((a) == (b) || BROKEN == START_NOT_COMPARED && pid_of[(a) - 1] == pid_of[(b) - 1])

/* Which generations are an ancestor's: the stamp, between two looks at the generation. */
inline find_their_slots()
{
    s = 1;
next_slot:
    do
    :: s > SLOTS -> break
    :: d_step { s <= SLOTS -> g = generation[s] };
        atomic {
            q = stamp[s];
            d_step {
                for (i : 0 .. DEPTH - 1) {
                    if
                    :: q != 0 && chain[i] != 0 && SAME(chain[i], q) -> link[s] = i + 1
                    :: else
                    fi
                }
                i = 0
            }
            if
            :: link[s] == 0 -> s++; goto next_slot
            :: else
            fi
        };
        d_step {
            g = (BROKEN == GENERATION_READ_ONCE -> generation[s] : g);
            theirs[s] = (generation[s] == g -> g : 0);
            s++
        }
    od
}

/* Again, and link by link: one that was read after its pid had gone to a stranger is none of our
 * chain, nor is what is above it. */
inline walk_up_again()
{
    k = 0;
    at = PARENT_PID(me);
    do
    :: atomic {
            q = has_pid[at]; /* pid 0 is nobody's */
            REACHED(STRANGER_IN_CHAIN, q != 0 && q != chain[k]);
            if
            :: BROKEN == LINKS_NOT_COMPARED && q != 0 ->
                d_step { for (j : 0 .. DEPTH - 1) { met[j] = met[j] || chain[j] == q } j = 0 }
            :: BROKEN != LINKS_NOT_COMPARED && q != 0 && q == chain[k] -> met[k] = true
            :: else -> break
            fi;
            at = PARENT_PID(q - 1);
            k++;
            if
            :: k == DEPTH -> break
            :: else
            fi
        }
    od
}

/* What is kept of all this: for each slot the generation that is an ancestor's, or 0. */
inline find_ancestors()
{
#if WARM
    d_step {
        for (i : 1 .. SLOTS) {
            q = lock[i];
            theirs[i] = (q == 0 -> 0 : (DESCENDS(me, q - 1) -> generation[i] : 0))
        }
        i = 0;
        q = 0
    }
#else
    walk_up();
    find_their_slots();
    if
    :: BROKEN == CHAIN_NOT_REWALKED
    :: else -> walk_up_again()
    fi;
    atomic {
        k = 0;
        d_step {
            for (i : 1 .. SLOTS) {
                if
                :: link[i] != 0 && !met[link[i] - 1] && BROKEN != CHAIN_NOT_REWALKED ->
                    theirs[i] = 0
                :: else
                fi;
                link[i] = 0
            }
            for (i : 0 .. DEPTH - 1) { chain[i] = 0; met[i] = false }
            i = 0; s = 0; g = 0; q = 0; at = 0
        }
    }
#endif
}

#define IS_THEIRS(half) ((half) != 0 && theirs[SLOT(half)] == GENERATION(half))
#define RENAMED(p, n) (lent_as[p] != 0 && lent_as[p] != n && BROKEN != HEIR_RENAMED)

/* The word of a living ancestor, claimed under our name, that has no living heir, or one who is an
 * ancestor of ours. The tag is read again when we are in the word: from then on its owner cannot
 * claim it anew. If we are in the word no more, a descendant of ours has taken the place already.
 * A process is lent a port under one name only: else the word with its half may be another claim's
 * than the one whose tag its descendant has read, and would look the same. */
inline pm_ledger_lend(p, n)
{
    find_ancestors();
    w = word[p];
    if
    :: OWNER_OF(w) == 0 || RENAMED(p, n) || tag[p] != TAG(n, OWNER_OF(w)) -> goto done
    :: else
    fi;
    if
    :: IS_THEIRS(HEIR_OF(w))
    :: else ->
        done_if_alive(HEIR_OF(w));
        if
        :: IS_THEIRS(OWNER_OF(w))
        :: else -> goto done
        fi
    fi;
    /* Where the owner is gone, the heir moves up into its place: it goes on when we are gone. Dead is
     * dead, so that this look may be older than the swap. */
    if
    :: IS_THEIRS(HEIR_OF(w)) && !LIVES(OWNER_OF(w)) -> up = true
    :: else
    fi;
    atomic {
        if
        :: word[p] == w && up ->
            word[p] = WORD(HEIR_OF(w), half);
            lent_as[p] = n;
            d_step { move_up(p) }
        :: word[p] == w && !up ||
           BROKEN == TWO_WORDS && !up && HEIR_OF(word[p]) == HEIR_OF(w) ->
            word[p] = WORD(OWNER_OF(word[p]), half);
            lent_as[p] = n;
            d_step { supersede(p) }
        :: else -> goto done
        fi
    };
    if
    :: up -> /* the old tag was the dead owner's */
        w = WORD(HEIR_OF(w), 0);
        tag[p] = TAG(n, OWNER_OF(w))
    :: else
    fi;
    if
    :: tag[p] == TAG(n, OWNER_OF(w)) || BROKEN == TAG_NOT_REREAD ->
        d_step {
            if
            :: HEIR_OF(word[p]) == half || BROKEN == PLACE_NOT_REREAD ->
                check_lent(p, n);
                hold[AT(me, p)] = HEIR;
                held_as[AT(me, p)] = n;
                REACHED(LENDING, LIVES(OWNER_OF(word[p])));
                REACHED(HANDING_DOWN, over != 0);
                REACHED(DEAD_HEIR_REPLACED, HEIR_OF(w) != 0 && over == 0)
            :: else -> REACHED(PLACE_TAKEN, true)
            fi
        }
    :: else ->
        d_step {
            REACHED(WITHDRAWAL, true);
            over = (HEIR_OF(word[p]) == half -> over : 0) /* else another one has superseded us */
        };
        take_away_own_half(p);
        check_withdrawn(p)
    fi
}
