/* The libzmq programs of the encryption benchmark: a proxy, a publisher and a subscriber. They use CURVE if
 * keys are given.
 *
 *   curve proxy PORT [SECRET]
 *   curve pub PORT COUNT SIZE [SERVER SECRET]
 *   curve sub PORT COUNT [SERVER SECRET]
 *
 * Messages look like those of xMsg: a topic of 20 bytes, metadata of 20 bytes, and data. `sub` prints the
 * seconds between its first and its last message, and how many messages are missing after a second of
 * silence.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

static void check(int failed, const char *what)
{
    if (failed) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void *open_socket(void *context, int type)
{
    int none = 0, forever = -1;
    void *socket = zmq_socket(context, type);
    check(!socket, "socket");
    zmq_setsockopt(socket, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_LINGER, &forever, sizeof forever);
    return socket;
}

static void *bind_to(void *context, int type, int port, const char *secret)
{
    int server = 1;
    char endpoint[64];
    void *socket = open_socket(context, type);
    if (secret) {
        check(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &server, sizeof server), "curve server");
        check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41), "secret key");
    }
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    check(zmq_bind(socket, endpoint), endpoint);
    return socket;
}

static void *connect_to(void *context, int type, int port, char **keys)
{
    char endpoint[64], public[41];
    void *socket = open_socket(context, type);
    if (keys) {
        check(zmq_curve_public(public, keys[1]), "public key");
        check(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, keys[0], 41), "server key");
        check(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public, 41), "public key");
        check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys[1], 41), "secret key");
    }
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    check(zmq_connect(socket, endpoint), endpoint);
    return socket;
}

static void publish(void *socket, long count, size_t size)
{
    static const char topic[20] = "bench:curve:topic:00", metadata[20] = "r\x12" "binary/array-sint8";
    char *data = calloc(1, size);
    zmq_msg_t subscription;
    zmq_msg_init(&subscription);
    check(zmq_msg_recv(&subscription, socket, 0) < 0, "subscription");
    for (long i = 0; i < count; i++) {
        check(zmq_send(socket, topic, sizeof topic, ZMQ_SNDMORE) < 0, "send");
        check(zmq_send(socket, metadata, sizeof metadata, ZMQ_SNDMORE) < 0, "send");
        check(zmq_send(socket, data, size, 0) < 0, "send");
    }
}

static void subscribe(void *socket, long count)
{
    int patience = 20000, silence = 1000;
    long frames = 0, received = 0;
    double first = 0, last = 0;
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience, sizeof patience);
    check(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "bench:", 6), "subscribe");
    while (received < count && zmq_msg_recv(&frame, socket, 0) >= 0) {
        if (frames++ == 0) {
            first = seconds();
            zmq_setsockopt(socket, ZMQ_RCVTIMEO, &silence, sizeof silence);
        }
        received += !zmq_msg_more(&frame);
        last = seconds();
    }
    printf("%.6f %ld\n", last - first, count - received);
}

int main(int argc, char **argv)
{
    void *context = zmq_ctx_new();
    int port = argc > 2 ? atoi(argv[2]) : 0;
    if (argc >= 3 && !strcmp(argv[1], "proxy")) {
        const char *secret = argc > 3 ? argv[3] : NULL;
        return zmq_proxy(bind_to(context, ZMQ_XSUB, port, secret), bind_to(context, ZMQ_XPUB, port + 1, secret), NULL);
    }
    void *socket = NULL;
    if (argc >= 5 && !strcmp(argv[1], "pub")) {
        socket = connect_to(context, ZMQ_XPUB, port, argc > 6 ? argv + 5 : NULL);
        publish(socket, atol(argv[3]), atol(argv[4]));
    } else if (argc >= 4 && !strcmp(argv[1], "sub")) {
        socket = connect_to(context, ZMQ_SUB, port + 1, argc > 5 ? argv + 4 : NULL);
        subscribe(socket, atol(argv[3]));
    } else {
        fprintf(stderr, "usage: see the head of curve.c\n");
        return 2;
    }
    zmq_close(socket);
    zmq_ctx_term(context);
    return 0;
}
