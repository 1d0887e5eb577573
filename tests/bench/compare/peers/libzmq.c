/* The program of the libzmq stack: publishers, subscribers, or zmq_proxy.
 *
 *   libzmq-peer pub|sub|proxy --port N [--clients N …]
 *
 * The options and the lines on stdin and stdout are those of every other stack: see src/plan.rs and
 * src/peer/mod.rs. There are no high-water marks, so nothing is dropped, and queues grow. Each publisher is a
 * thread with a PUB socket. Subscribers share a thread: a single socket is read by a blocking call, and
 * several sockets are polled, and each is emptied in turn.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <zmq.h>

enum { FRAME = 20, HEADER = 16, BURST = 256, MAX_PUBLISHERS = 64 };
enum kind { PROBE = 1, WARM_UP = 2, MEASURED = 3 };
static const char METADATA[] = "r\x12" "binary/data-packet";
static const uint64_t TICK_NS = 50000, PROBE_INTERVAL_NS = 10000000;

static long port, clients = 1, publishers = 1, count, warm_up, size = HEADER, topics = 1, stride = 1, rate, limit_ms;
static const char *interest = "all", *latency_file;
static char (*topic_table)[FRAME + 1];

static void die(const char *what)
{
    fprintf(stderr, "libzmq: %s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

static void *new_socket(void *context, int type, int is_server, int socket_port)
{
    int no_limit = 0, no_linger = 0;
    char endpoint[64];
    void *socket = zmq_socket(context, type);
    if (!socket)
        die("socket");
    zmq_setsockopt(socket, ZMQ_SNDHWM, &no_limit, sizeof no_limit);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &no_limit, sizeof no_limit);
    zmq_setsockopt(socket, ZMQ_LINGER, &no_linger, sizeof no_linger);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", socket_port);
    if (is_server ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint))
        die(endpoint);
    return socket;
}

/* ---- publishers ---- */

static pthread_mutex_t phase_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t phase_changed = PTHREAD_COND_INITIALIZER;
static enum { CONNECTED, PROBING, GO } phase;
static atomic_long published;
static atomic_ulong measured_from = UINT64_MAX; /* when the first measured message was sent */

static void set_phase(int next)
{
    pthread_mutex_lock(&phase_lock);
    phase = next;
    pthread_cond_broadcast(&phase_changed);
    pthread_mutex_unlock(&phase_lock);
}

/* Waits until the phase is at least this one, or the time has passed. Returns the phase. */
static int wait_phase(int wanted, uint64_t ns)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    uint64_t sum = (uint64_t)end.tv_nsec + ns;
    end.tv_sec += (time_t)(sum / 1000000000u);
    end.tv_nsec = (long)(sum % 1000000000u);
    pthread_mutex_lock(&phase_lock);
    while ((int)phase < wanted && pthread_cond_timedwait(&phase_changed, &phase_lock, &end) == 0)
        ;
    int found = phase;
    pthread_mutex_unlock(&phase_lock);
    return found;
}

static void send_message(void *socket, char *payload, long topic, enum kind kind, long publisher, uint64_t sequence, uint64_t due)
{
    uint64_t header[2] = {(uint64_t)kind << 56 | (uint64_t)publisher << 40 | sequence, due};
    memcpy(payload, header, sizeof header);
    if (zmq_send(socket, topic_table[topic], FRAME, ZMQ_SNDMORE) < 0 || zmq_send(socket, METADATA, FRAME, ZMQ_SNDMORE) < 0
        || zmq_send(socket, payload, (size_t)size, 0) < 0)
        die("send");
}

struct publisher {
    void *socket;
    long index;
};

static void *publisher_thread(void *argument)
{
    struct publisher *self = argument;
    char *payload = malloc((size_t)size);
    memset(payload, 'x', (size_t)size);
    while (wait_phase(PROBING, UINT64_C(1000000000)) < PROBING)
        ;
    long first = !strcmp(interest, "every") ? topics - 1 : 0, last = !strcmp(interest, "all") ? 0 : topics - 1;
    do {
        for (long topic = first; topic <= last; topic++)
            send_message(self->socket, payload, topic, PROBE, self->index, 0, 0);
    } while (wait_phase(GO, PROBE_INTERVAL_NS) < GO);

    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    uint64_t start = now_ns(), end = start + (uint64_t)limit_ms * 1000000u;
    long total = warm_up + count, sent = 0, check = size < 4096 ? 16 : 1;
    for (; sent < total; sent++) {
        uint64_t due = 0;
        if (rate) {
            due = start + (uint64_t)sent * 1000000000u / (uint64_t)rate;
            for (uint64_t now; (now = now_ns()) < due;)
                sleep_ns(due - now < TICK_NS ? TICK_NS : due - now);
        }
        if (sent % check == 0 && now_ns() > end)
            break;
        int is_warm_up = sent < warm_up;
        if (sent == warm_up) {
            uint64_t now = now_ns(), known = atomic_load(&measured_from);
            while (now < known && !atomic_compare_exchange_weak(&measured_from, &known, now))
                ;
        }
        send_message(self->socket, payload, sent * stride % topics, is_warm_up ? WARM_UP : MEASURED, self->index,
                     (uint64_t)(is_warm_up ? sent : sent - warm_up), due);
    }
    atomic_fetch_add(&published, sent > warm_up ? sent - warm_up : 0);
    return NULL;
}

static void *publish_all(void *context)
{
    pthread_t threads[MAX_PUBLISHERS];
    struct publisher all[MAX_PUBLISHERS];
    for (long i = 0; i < clients; i++)
        all[i] = (struct publisher){new_socket(context, ZMQ_PUB, 0, (int)port), i};
    for (long i = 0; i < clients; i++)
        pthread_create(&threads[i], NULL, publisher_thread, &all[i]);
    say("ready");
    for (long i = 0; i < clients; i++)
        pthread_join(threads[i], NULL);
    printf("published %ld %lu\n", atomic_load(&published), atomic_load(&measured_from));
    fflush(stdout);
    return NULL;
}

/* ---- subscribers ---- */

struct subscriber {
    _Alignas(128) atomic_ulong seen; /* a bit for each publisher from which a probe was received */
    atomic_ulong received, last, at_last, disorder;
    uint64_t next[MAX_PUBLISHERS];
    uint64_t target;
    void *socket;
};
static struct subscriber *subscribers;
static uint64_t *latencies;
static atomic_ulong latency_count;
static uint64_t latency_room;

#define STORE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

static void note(struct subscriber *self, const void *payload)
{
    uint64_t header[2];
    memcpy(header, payload, sizeof header);
    unsigned publisher = header[0] >> 40 & 0xffff;
    enum kind kind = header[0] >> 56;
    if (kind != MEASURED) {
        if (kind == PROBE)
            STORE(self->seen, LOAD(self->seen) | 1ul << publisher % MAX_PUBLISHERS);
        return;
    }
    uint64_t sequence = header[0] & 0xffffffffff, *next = &self->next[publisher % MAX_PUBLISHERS];
    if (sequence < *next)
        STORE(self->disorder, LOAD(self->disorder) + 1);
    *next = sequence + 1;
    uint64_t received = LOAD(self->received) + 1;
    STORE(self->received, received);
    if (latency_room) {
        uint64_t index = LOAD(latency_count), now = now_ns();
        if (index < latency_room)
            latencies[index] = now > header[1] ? now - header[1] : 0;
        STORE(latency_count, index + 1);
    }
    if (received < 64 || received % 16 == 0 || received == self->target) {
        STORE(self->last, now_ns());
        STORE(self->at_last, received);
    }
}

/* Receives one message. Returns 0 if there is none and the call may not wait for it. */
static int receive(struct subscriber *self, zmq_msg_t *part, int flags)
{
    int frames = 0;
    do {
        if (zmq_msg_recv(part, self->socket, flags) < 0) {
            if (zmq_errno() == EAGAIN)
                return 0;
            die("receive");
        }
        frames++;
    } while (zmq_msg_more(part));
    if (frames != 3 || zmq_msg_size(part) != (size_t)size)
        die("a message of another shape came");
    note(self, zmq_msg_data(part));
    return 1;
}

static void *receive_all(void *context)
{
    (void)context;
    zmq_msg_t part;
    zmq_msg_init(&part);
    if (clients == 1)
        for (;;)
            receive(&subscribers[0], &part, 0);
    zmq_pollitem_t *items = calloc((size_t)clients, sizeof *items);
    for (long i = 0; i < clients; i++)
        items[i] = (zmq_pollitem_t){subscribers[i].socket, 0, ZMQ_POLLIN, 0};
    for (;;) {
        if (zmq_poll(items, (int)clients, -1) < 0)
            die("poll");
        for (long i = 0; i < clients; i++)
            for (int n = 0; items[i].revents && n < BURST && receive(&subscribers[i], &part, ZMQ_DONTWAIT); n++)
                ;
    }
    return NULL;
}

static void open_subscribers(void *context)
{
    subscribers = aligned_alloc(128, (size_t)clients * sizeof *subscribers);
    memset(subscribers, 0, (size_t)clients * sizeof *subscribers);
    for (long i = 0; i < clients; i++) {
        subscribers[i].target = (uint64_t)count;
        void *socket = subscribers[i].socket = new_socket(context, ZMQ_SUB, 0, (int)port + 1);
        if (!strcmp(interest, "all"))
            zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "bench:", 6);
        else if (!strcmp(interest, "own"))
            zmq_setsockopt(socket, ZMQ_SUBSCRIBE, topic_table[i], FRAME);
        else
            for (long topic = 0; topic < topics; topic++)
                zmq_setsockopt(socket, ZMQ_SUBSCRIBE, topic_table[topic], FRAME);
    }
    if (latency_file) {
        latency_room = (uint64_t)count;
        latencies = calloc(latency_room, sizeof *latencies);
    }
}

static void print_status(void)
{
    uint64_t pairs = 0, received = 0;
    for (long i = 0; i < clients; i++) {
        pairs += (uint64_t)__builtin_popcountl(LOAD(subscribers[i].seen));
        received += LOAD(subscribers[i].received);
    }
    printf("status %" PRIu64 " %" PRIu64 "\n", pairs, received);
    fflush(stdout);
}

static void print_result(void)
{
    uint64_t received = 0, at_last = 0, disorder = 0, last = 0;
    for (long i = 0; i < clients; i++) {
        struct subscriber *s = &subscribers[i];
        received += LOAD(s->received);
        at_last += LOAD(s->at_last);
        disorder += LOAD(s->disorder);
        last = LOAD(s->last) > last ? LOAD(s->last) : last;
    }
    if (latency_file) {
        FILE *file = fopen(latency_file, "wb");
        uint64_t known = LOAD(latency_count) < latency_room ? LOAD(latency_count) : latency_room;
        if (!file || fwrite(latencies, sizeof *latencies, known, file) != known || fclose(file)) {
            perror(latency_file);
            exit(1);
        }
    }
    printf("result {\"received\":%" PRIu64 ",\"timed\":%" PRIu64 ",\"last_ns\":%" PRIu64 ",\"disorder\":%" PRIu64 "}\n", received,
           at_last, last, disorder);
    fflush(stdout);
}

/* ---- both ---- */

static void read_options(int argc, char **argv)
{
    struct {
        const char *name;
        long *number;
        const char **text;
    } options[] = {{"--port", &port, NULL},         {"--clients", &clients, NULL},   {"--publishers", &publishers, NULL},
                   {"--count", &count, NULL},       {"--warm-up", &warm_up, NULL},   {"--size", &size, NULL},
                   {"--topics", &topics, NULL},     {"--stride", &stride, NULL},     {"--rate", &rate, NULL},
                   {"--limit-ms", &limit_ms, NULL}, {"--interest", NULL, &interest}, {"--latencies", NULL, &latency_file}};
    for (int i = 2; i + 1 < argc; i += 2) {
        int known = 0;
        for (size_t o = 0; o < sizeof options / sizeof *options; o++)
            if (!strcmp(argv[i], options[o].name)) {
                known = 1;
                if (options[o].number)
                    *options[o].number = atol(argv[i + 1]);
                else
                    *options[o].text = argv[i + 1];
            }
        if (!known) {
            fprintf(stderr, "libzmq: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
    if (size < HEADER || publishers > MAX_PUBLISHERS || topics < 1) {
        fprintf(stderr, "libzmq: impossible sizes or counts\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    read_options(argc, argv);
    topic_table = calloc((size_t)topics, sizeof *topic_table);
    for (long i = 0; i < topics; i++)
        snprintf(topic_table[i], sizeof *topic_table, "bench:%014u", (unsigned)i);
    void *context = zmq_ctx_new();
    if (!strcmp(argv[1], "proxy")) {
        void *frontend = new_socket(context, ZMQ_XSUB, 1, (int)port), *backend = new_socket(context, ZMQ_XPUB, 1, (int)port + 1);
        say("ready");
        return zmq_proxy(frontend, backend, NULL);
    }
    int is_subscriber = !strcmp(argv[1], "sub");
    if (is_subscriber)
        open_subscribers(context);
    pthread_t worker;
    pthread_create(&worker, NULL, is_subscriber ? receive_all : publish_all, context);
    if (is_subscriber)
        say("ready");
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "probe\n"))
            set_phase(PROBING);
        else if (!strcmp(line, "go\n"))
            set_phase(GO);
        else if (!strcmp(line, "status\n"))
            print_status();
        else if (!strcmp(line, "stop\n")) {
            if (is_subscriber)
                print_result();
            break;
        }
    }
    _Exit(0); /* The other thread is still busy, but nothing is left to do. */
}
