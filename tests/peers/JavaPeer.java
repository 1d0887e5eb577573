import java.nio.ByteBuffer;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;

/**
 * Connects, subscribes and publishes on JeroMQ in the same way as the Java implementation of xMsg.
 *
 * <pre>java -cp jeromq.jar JavaPeer.java PORT COUNT</pre>
 *
 * It prints, in this order: {@code connected ATTEMPTS}, {@code subscribed ATTEMPTS}, {@code echoed COUNT}.
 * Each request is sent every 100 ms, at most 10 times. After the subscription it sleeps for 10 ms, and then
 * sends COUNT messages to itself.
 */
public class JavaPeer {
    private static final int ATTEMPTS = 10;
    private static final int INTERVAL_MS = 100;
    private static final String ID = "112354321";

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[0]);
        int count = Integer.parseInt(args[1]);
        ZContext context = new ZContext();
        ZMQ.Socket control = open(context, ZMQ.DEALER, ID.getBytes(), port + 2);
        ZMQ.Socket pub = open(context, ZMQ.PUB, null, port);
        int attempts = ask(pub, "xmsg:control:con", "pub", ID, control, new String[] {"pub"});
        System.out.println("connected " + attempts);
        control.close();

        String topic = "java:echo";
        ZMQ.Socket sub = open(context, ZMQ.SUB, null, port + 1);
        sub.subscribe(topic.getBytes());
        ZMQ.Socket requests = open(context, ZMQ.PUB, null, port);
        attempts = ask(requests, "xmsg:control:sub", "sub", topic, sub, new String[] {topic, "sub"});
        System.out.println("subscribed " + attempts);
        requests.close();
        Thread.sleep(10);

        for (int i = 0; i < count; i++) {
            pub.sendMore(topic);
            pub.sendMore("r\u000cbinary/bytes");
            pub.send(ByteBuffer.allocate(4).putInt(i).array());
        }
        sub.setReceiveTimeOut(20_000);
        for (int i = 0; i < count; ) {
            byte[] first = sub.recv();
            check(first != null, "message " + i + " did not come back");
            byte[] second = sub.recv();
            if (!sub.hasReceiveMore()) {
                continue; // a late answer to `sub`
            }
            byte[] data = sub.recv();
            check(ByteBuffer.wrap(data).getInt() == i, "out of order at " + i);
            i++;
        }
        System.out.println("echoed " + count);
        System.exit(0);
    }

    private static ZMQ.Socket open(ZContext context, int type, byte[] identity, int port) {
        ZMQ.Socket socket = context.createSocket(type);
        if (identity != null) {
            socket.setIdentity(identity);
        }
        socket.setHWM(0);
        socket.setReceiveTimeOut(INTERVAL_MS);
        socket.connect("tcp://127.0.0.1:" + port);
        return socket;
    }

    private static int ask(ZMQ.Socket out, String topic, String kind, String argument, ZMQ.Socket in, String[] answer) {
        for (int attempt = 1; attempt <= ATTEMPTS; attempt++) {
            out.sendMore(topic);
            out.sendMore(kind);
            out.send(argument);
            String first = in.recvStr();
            if (first == null) {
                continue;
            }
            check(first.equals(answer[0]), "unexpected answer " + first);
            for (int i = 1; i < answer.length; i++) {
                check(in.hasReceiveMore() && in.recvStr().equals(answer[i]), "unexpected frame " + i);
            }
            check(!in.hasReceiveMore(), "too many frames");
            return attempt;
        }
        check(false, "no answer to " + kind);
        return 0;
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            System.err.println("JavaPeer: " + what);
            System.exit(1);
        }
    }
}
