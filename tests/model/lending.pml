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

#define IS_THEIRS(half) ((half) != 0 && (half) < LEFT && theirs[SLOT(half)] == GENERATION(half))

/* Goes on unless a living half is none of our ancestors'; notes whether one is. What is dead, in a
 * cell, may be of an earlier claim than the word. */
inline done_if_stranger(which)
{
    if
    :: (which) == 0 || (which) >= LEFT || generation[SLOT(which)] != GENERATION(which)
    :: else ->
        if
        :: lock[SLOT(which)] == 0
        :: lock[SLOT(which)] != 0 && IS_THEIRS(which) -> any = true
        :: lock[SLOT(which)] != 0 && !IS_THEIRS(which) -> goto done
        fi
    fi
}

/* Of the cells too.. */
inline done_if_strangers(p)
{
    c = 0;
    do
    :: c == CELLS -> break
    :: else ->
        q = cell[IN(p, c)];
        done_if_stranger(q);
        c++
    od
}

inline done_if_not_in_cell(p, which)
{
    d_step {
        q = 0;
        for (i : 0 .. CELLS - 1) { q = (cell[IN(p, i)] == which -> 1 : q) }
        i = 0
    }
    if
    :: q == 0 && BROKEN != HEIR_NOT_IN_CELL -> goto done
    :: else
    fi
}

/* The first that is free, or a dead one's. Nobody else puts itself into one meanwhile. */
inline enter_cell(p)
{
    c = 0;
    do
    :: c == CELLS -> break
    :: c < CELLS && !LIVES(cell[IN(p, c)]) -> cell[IN(p, c)] = half; break
    :: c < CELLS && LIVES(cell[IN(p, c)]) -> c++
    od
}

/* A word that was claimed under our name, when all who hold the port are ancestors of ours. An heir
 * that is not in its cell yet has not done lending. The tag is read again when we are in the word:
 * from then on its owner cannot claim it anew; and so are the cells: from then on nobody else gets
 * into one, before we are in ours. */
inline pm_ledger_lend(p, n)
{
    find_ancestors();
    w = word[p];
    if
    :: OWNER_OF(w) == 0 || tag[p] != TAG(n, OWNER_HALF(w)) -> goto done
    :: else
    fi;
    done_if_stranger(OWNER_OF(w));
    done_if_stranger(HEIR_OF(w));
    if
    :: IS_THEIRS(HEIR_OF(w)) -> done_if_not_in_cell(p, HEIR_OF(w))
    :: else
    fi;
    done_if_strangers(p);
    if
    :: !any -> goto done
    :: else
    fi;
    atomic {
        if
        :: word[p] == w || BROKEN == TWO_WORDS && HEIR_OF(word[p]) == HEIR_OF(w) ->
            word[p] = WORD(OWNER_OF(word[p]), half)
        :: else -> goto done
        fi
    };
    if
    :: tag[p] != TAG(n, OWNER_HALF(w)) && BROKEN != TAG_NOT_REREAD ->
        REACHED(WITHDRAWAL, true);
        goto withdraw
    :: else
    fi;
#if BROKEN != CELLS_NOT_REREAD
    c = 0;
    do
    :: c == CELLS -> break
    :: else ->
        q = cell[IN(p, c)];
        if
        :: LIVES(q) && !IS_THEIRS(q) -> goto withdraw
        :: else
        fi;
        c++
    od;
#endif
    enter_cell(p);
    if
    :: c == CELLS -> goto withdraw /* too many generations hold it */
    :: else
    fi;
    d_step {
        check_lent(p, n);
        hold[AT(me, p)] = HEIR;
        held_as[AT(me, p)] = n
    };
    goto done;
withdraw:
    leave_word(p)
}
