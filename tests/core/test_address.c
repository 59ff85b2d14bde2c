/* Host text to socket addresses. */
#include "support.h"

#include <net/if.h>
#include <sys/mount.h>

#include "core/address.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void assert_v4(const pm_address *address, const char *literal)
{
    char text[INET_ADDRSTRLEN];
    assert_int_equal(address->any.sa_family, AF_INET);
    assert_int_equal(address->v4.sin_port, 0);
    assert_string_equal(inet_ntop(AF_INET, &address->v4.sin_addr, text, sizeof text), literal);
}

static void assert_v6(const pm_address *address, const char *literal, unsigned scope)
{
    char text[INET6_ADDRSTRLEN];
    assert_int_equal(address->any.sa_family, AF_INET6);
    assert_int_equal(address->v6.sin6_port, 0);
    assert_int_equal(address->v6.sin6_scope_id, scope);
    assert_string_equal(inet_ntop(AF_INET6, &address->v6.sin6_addr, text, sizeof text), literal);
}

/* A text that ends where its memory ends, so that a sanitizer sees who reads on. */
static char *repeated(const char *front, char filling, size_t length, const char *back)
{
    char *text = malloc(length + 1);
    assert_non_null(text);
    memset(text, filling, length);
    memcpy(text, front, strlen(front));
    memcpy(text + length - strlen(back), back, strlen(back) + 1);
    return text;
}

static void test_empty_host_is_both_wildcards(void **state)
{
    pm_addresses addresses;
    (void)state;

    assert_status(pm_address_literal("", &addresses), PM_OK);
    assert_int_equal(addresses.count, 2);
    assert_v4(&addresses.items[0], "0.0.0.0");
    assert_v6(&addresses.items[1], "::", 0);
}

static void test_ipv4_literals(void **state)
{
    static const char *const literals[] = {"127.0.0.1", "0.0.0.0", "127.0.20.4", "255.255.255.255"};
    pm_addresses addresses;
    (void)state;

    for (size_t i = 0; i < COUNT(literals); i++) {
        assert_status(pm_address_literal(literals[i], &addresses), PM_OK);
        assert_int_equal(addresses.count, 1);
        assert_v4(&addresses.items[0], literals[i]);
    }
}

static void test_ipv6_literals(void **state)
{
    static const struct {
        const char *host, *address;
    } cases[] = {
        {"::1",             "::1"        },
        {"[::1]",           "::1"        },
        {"::",              "::"         },
        {"[::]",            "::"         },
        {"0:0:0:0:0:0:0:1", "::1"        },
        {"2001:DB8::7",     "2001:db8::7"},
        {"[2001:db8::7]",   "2001:db8::7"}
    };
    pm_addresses addresses;
    (void)state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_status(pm_address_literal(cases[i].host, &addresses), PM_OK);
        assert_int_equal(addresses.count, 1);
        assert_v6(&addresses.items[0], cases[i].address, 0);
    }
}

static void test_scope_ids(void **state)
{
    static const char *const hosts[] = {"fe80::1%lo", "[fe80::1%lo]"};
    pm_addresses addresses;
    char host[32];
    unsigned lo = if_nametoindex("lo");
    (void)state;

    assert_int_not_equal(lo, 0);
    for (size_t i = 0; i < COUNT(hosts); i++) {
        assert_status(pm_address_literal(hosts[i], &addresses), PM_OK);
        assert_int_equal(addresses.count, 1);
        assert_v6(&addresses.items[0], "fe80::1", lo);
    }
    snprintf(host, sizeof host, "fe80::1%%%u", lo);
    assert_status(pm_address_literal(host, &addresses), PM_OK);
    assert_v6(&addresses.items[0], "fe80::1", lo);
}

static void check_texts_that_are_no_literals(void *unused)
{
    static const char *const texts[] = {
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "127.0.0",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.4.",
        " 127.0.0.1",
        "127.0.0.1 ",
        "127.0.0.1\n",
        "127.0.0.1:80",
        "[",
        "]",
        "[]",
        "[::1",
        "::1]",
        "[[::1]]",
        "[::1]:80",
        "[127.0.0.1]",
        ":",
        ":::",
        "1::2::3",
        "12345::",
        "%",
        "%lo",
        "lo%lo",
        "127.0.0.1%lo",
        "fe80::1%",
        "[fe80::1%]",
        "fe80::1%nosuch0",
        "[fe80::1%nosuch0]",
        "name.invalid",
        "*",
        "-",
        " ",
    };
    pm_addresses addresses;
    (void)unused;

    forbid_connections();
    for (size_t i = 0; i < COUNT(texts); i++) {
        pm_status status = pm_address_literal(texts[i], &addresses);
        if (status != PM_UNRESOLVED) {
            fail_msg("'%s' came out as %s", texts[i], status_name(status));
        }
    }
}

static void test_other_texts_are_no_literals_and_no_resolver_is_asked(void **state)
{
    (void)state;
    in_child(check_texts_that_are_no_literals, NULL);
}

static void check_long_texts(void *unused)
{
    static const size_t lengths[] = {256, 257, 1000, 10000};
    static const struct {
        const char *front;
        char filling;
        const char *back;
    } kinds[] = {
        {"",          'a', ""    },
        {"",          '.', ""    },
        {"",          '1', ""    },
        {"",          ':', ""    },
        {"[",         ':', "]"   },
        {"[",         '0', "::1]"},
        {"",          '[', ""    },
        {"fe80::1%",  'l', ""    },
        {"[fe80::1%", 'l', "]"   },
        {"",          '%', ""    },
        {"127.0.0.1", ' ', ""    }
    };
    pm_addresses addresses;
    (void)unused;

    forbid_connections(); /* what cannot be a host must not travel */
    for (size_t i = 0; i < COUNT(lengths); i++) {
        for (size_t k = 0; k < COUNT(kinds); k++) {
            char *text = repeated(kinds[k].front, kinds[k].filling, lengths[i], kinds[k].back);
            assert_status(pm_address_literal(text, &addresses), PM_UNRESOLVED);
            assert_status(pm_address_resolve(text, &addresses), PM_UNRESOLVED);
            free(text);
        }
    }
}

static void test_long_texts_are_unresolved_at_once(void **state)
{
    (void)state;
    in_child(check_long_texts, NULL);
}

static void test_texts_of_the_greatest_length(void **state)
{
    static const size_t lengths[] = {253, 254, 255};
    pm_addresses addresses;
    (void)state;

    for (size_t i = 0; i < COUNT(lengths); i++) {
        char *name = repeated("", 'a', lengths[i], "");
        char *bracketed = repeated("[", 'a', lengths[i], "]");
        char *scoped = repeated("[fe80::1%", 'l', lengths[i], "]");
        assert_status(pm_address_literal(name, &addresses), PM_UNRESOLVED);
        assert_status(pm_address_literal(bracketed, &addresses), PM_UNRESOLVED);
        assert_status(pm_address_literal(scoped, &addresses), PM_UNRESOLVED);
        free(name);
        free(bracketed);
        free(scoped);
    }
}

static void test_wildcards_lengths_and_ports(void **state)
{
    pm_address v4 = pm_address_wildcard(AF_INET), v6 = pm_address_wildcard(AF_INET6);
    (void)state;

    assert_v4(&v4, "0.0.0.0");
    assert_v6(&v6, "::", 0);
    assert_int_equal(pm_address_length(&v4), sizeof(struct sockaddr_in));
    assert_int_equal(pm_address_length(&v6), sizeof(struct sockaddr_in6));
    pm_address_set_port(&v4, 0x1234);
    pm_address_set_port(&v6, 65535);
    assert_int_equal(ntohs(v4.v4.sin_port), 0x1234);
    assert_int_equal(ntohs(v6.v6.sin6_port), 65535);
}

static void check_resolving_without_connections(void *unused)
{
    static const struct {
        const char *host, *address;
    } cases[] = {
        {"127.0.0.1",  "127.0.0.1"},
        {"127.1",      "127.0.0.1"},
        {"2130706433", "127.0.0.1"},
        {"0x7f.1",     "127.0.0.1"}
    };
    pm_addresses addresses;
    (void)unused;

    forbid_connections();
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_status(pm_address_resolve(cases[i].host, &addresses), PM_OK);
        assert_int_equal(addresses.count, 1);
        assert_v4(&addresses.items[0], cases[i].address);
    }
    assert_status(pm_address_resolve("[::1]", &addresses), PM_OK);
    assert_int_equal(addresses.count, 1);
    assert_v6(&addresses.items[0], "::1", 0);
    assert_status(pm_address_resolve("", &addresses), PM_OK);
    assert_int_equal(addresses.count, 2);
}

static void test_resolving_what_needs_no_resolver(void **state)
{
    (void)state;
    in_child(check_resolving_without_connections, NULL);
}

static bool is_loopback(const pm_address *address)
{
    return address->any.sa_family == AF_INET ? ntohl(address->v4.sin_addr.s_addr) >> 24 == 127
                                             : IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr);
}

static void test_localhost_is_a_name_of_loopback(void **state)
{
    pm_addresses addresses;
    (void)state;

    assert_status(pm_address_literal("localhost", &addresses), PM_UNRESOLVED);
    assert_status(pm_address_resolve("localhost", &addresses), PM_OK);
    assert_in_range(addresses.count, 1, PM_ADDRESSES_MAX);
    for (size_t i = 0; i < addresses.count; i++) {
        assert_true(is_loopback(&addresses.items[i]));
        uint16_t port = ntohs(addresses.items[i].v4.sin_port); /* at one place in both families */
        assert_int_equal(port, 0);
    }
}

static void check_unknown_names(void *unused)
{
    static const char *const names[] = {"invalid", "name.invalid", "a-name.b-name.invalid"};
    pm_addresses addresses;
    (void)unused;

    enter_new_network(); /* a resolver out there cannot be asked */
    for (size_t i = 0; i < COUNT(names); i++) {
        assert_status(pm_address_resolve(names[i], &addresses), PM_UNRESOLVED);
    }
}

static void test_unknown_names_are_unresolved(void **state)
{
    (void)state;
    in_child(check_unknown_names, NULL);
}

/* Other contents for /etc/hosts, as this process sees it; for children only. */
static void replace_hosts(const char *text)
{
    char path[] = "/tmp/hosts-XXXXXX";
    if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        skip_because("no mount namespace is permitted here");
    }
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    int mounted = mount(path, "/etc/hosts", NULL, MS_BIND, NULL);
    unlink(path);
    if (mounted != 0) {
        skip_because("/etc/hosts cannot be covered here");
    }
}

static void check_name_with_two_addresses(void *unused)
{
    pm_addresses addresses;
    bool loopback = false, foreign = false;
    (void)unused;

    replace_hosts("127.0.0.1 two.invalid\n192.0.2.77 two.invalid\n");
    assert_status(pm_address_resolve("two.invalid", &addresses), PM_OK);
    assert_int_equal(addresses.count, 2);
    for (size_t i = 0; i < 2; i++) {
        loopback |= is_loopback(&addresses.items[i]);
        foreign |= !is_loopback(&addresses.items[i]);
    }
    assert_true(loopback && foreign);
}

static void test_a_name_has_all_its_addresses(void **state)
{
    (void)state;
    in_child(check_name_with_two_addresses, NULL);
}

static void check_name_with_many_addresses(void *unused)
{
    enum { ADDRESSES = PM_ADDRESSES_MAX + 8 };
    char text[ADDRESSES * 32];
    size_t length = 0;
    struct {
        pm_addresses addresses;
        char behind[64];
    } room;
    (void)unused;

    for (int i = 1; i <= ADDRESSES; i++) {
        length +=
            (size_t)snprintf(text + length, sizeof text - length, "127.0.7.%d many.invalid\n", i);
    }
    replace_hosts(text);
    memset(&room, 0x5a, sizeof room);
    assert_status(pm_address_resolve("many.invalid", &room.addresses), PM_OK);
    assert_int_equal(room.addresses.count, PM_ADDRESSES_MAX);
    for (size_t i = 0; i < room.addresses.count; i++) {
        assert_true(is_loopback(&room.addresses.items[i]));
    }
    for (size_t i = 0; i < sizeof room.behind; i++) {
        assert_int_equal(room.behind[i], 0x5a);
    }
}

static void test_a_name_with_many_addresses_has_the_first_ones(void **state)
{
    (void)state;
    in_child(check_name_with_many_addresses, NULL);
}

static void check_out_of_descriptors(void *unused)
{
    pm_addresses addresses;
    (void)unused;

    limit_descriptors(0);
    errno = 0;
    pm_status status = pm_address_resolve("localhost", &addresses);
    int error = errno;
    unlimit_descriptors();
    assert_status(status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    assert_status(pm_address_resolve("localhost", &addresses), PM_OK);
    assert_in_range(addresses.count, 1, PM_ADDRESSES_MAX);
}

static void test_out_of_descriptors_is_not_an_unknown_name(void **state)
{
    (void)state;
    in_child(check_out_of_descriptors, NULL);
}

static void check_descriptors(void *unused)
{
    static const char *const hosts[] = {"",      "127.0.0.1", "[::1]",       "fe80::1%lo",
                                        "127.1", "localhost", "name.invalid"};
    pm_addresses addresses;
    (void)unused;

    enter_new_network();
    forbid_inheritable_descriptors();
    pm_address_resolve("localhost", &addresses); /* the C library may keep what it has opened */
    size_t before = open_descriptors();
    for (size_t i = 0; i < COUNT(hosts); i++) {
        pm_address_literal(hosts[i], &addresses);
        pm_address_resolve(hosts[i], &addresses);
        assert_int_equal(open_descriptors(), before);
    }
}

static void test_no_descriptor_stays_or_could_be_inherited(void **state)
{
    (void)state;
    in_child(check_descriptors, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_host_is_both_wildcards),
        cmocka_unit_test(test_ipv4_literals),
        cmocka_unit_test(test_ipv6_literals),
        cmocka_unit_test(test_scope_ids),
        cmocka_unit_test(test_other_texts_are_no_literals_and_no_resolver_is_asked),
        cmocka_unit_test(test_long_texts_are_unresolved_at_once),
        cmocka_unit_test(test_texts_of_the_greatest_length),
        cmocka_unit_test(test_wildcards_lengths_and_ports),
        cmocka_unit_test(test_resolving_what_needs_no_resolver),
        cmocka_unit_test(test_localhost_is_a_name_of_loopback),
        cmocka_unit_test(test_unknown_names_are_unresolved),
        cmocka_unit_test(test_a_name_has_all_its_addresses),
        cmocka_unit_test(test_a_name_with_many_addresses_has_the_first_ones),
        cmocka_unit_test(test_out_of_descriptors_is_not_an_unknown_name),
        cmocka_unit_test(test_no_descriptor_stays_or_could_be_inherited),
    };
    return cmocka_run_group_tests_name("address", tests, isolate, NULL);
}
