import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

/** Connects to a branch as a JDBC user would, and tries what drivers do in their own ways. */
public final class Try {
    public static void main(String[] args) throws Exception {
        if (args.length > 1) {
            refused(args[0], args[1]);
            return;
        }
        try (Connection c = DriverManager.getConnection(args[0])) {
            prepared(c);
            batch(c);
            copy(c);
            notified(c);
            cancelled(c);
        }
        System.out.println("ok");
    }

    /** A connection that must be refused with a SQLSTATE. */
    private static void refused(String url, String state) throws Exception {
        try (Connection c = DriverManager.getConnection(url)) {
            throw new Exception("it connected");
        } catch (SQLException e) {
            check(state.equals(e.getSQLState()), e.getSQLState() + ": " + e.getMessage());
        }
        System.out.println("ok");
    }

    private static void check(boolean ok, String what) throws Exception {
        if (!ok) {
            throw new Exception(what);
        }
    }

    private static void prepared(Connection c) throws Exception {
        try (PreparedStatement s = c.prepareStatement("SELECT ? + 1")) {
            for (int i = 0; i < 20; i++) { // the driver changes to a named statement meanwhile
                s.setInt(1, i);
                ResultSet r = s.executeQuery();
                check(r.next() && r.getInt(1) == i + 1, "prepared statement");
            }
        }
    }

    private static void batch(Connection c) throws Exception {
        try (Statement s = c.createStatement()) {
            s.execute("CREATE TEMP TABLE b (a int, t text)");
        }
        try (PreparedStatement s = c.prepareStatement("INSERT INTO b VALUES (?, ?)")) {
            for (int i = 0; i < 5000; i++) {
                s.setInt(1, i);
                s.setString(2, "text " + i);
                s.addBatch();
            }
            check(s.executeBatch().length == 5000, "batch");
        }
    }

    private static void copy(Connection c) throws Exception {
        var copy = c.unwrap(PGConnection.class).getCopyAPI();
        check(copy.copyIn("COPY b FROM STDIN", new StringReader("1\tx\n2\ty\n")) == 2, "COPY in");
        StringWriter out = new StringWriter();
        check(copy.copyOut("COPY b TO STDOUT", out) == 5002, "COPY out");
    }

    private static void notified(Connection c) throws Exception {
        PGConnection pg = c.unwrap(PGConnection.class);
        try (Statement s = c.createStatement()) {
            s.execute("LISTEN jdbc");
            s.execute("NOTIFY jdbc, 'hello'");
        }
        PGNotification[] all = pg.getNotifications(5000);
        check(all != null && all.length == 1 && all[0].getPID() == pg.getBackendPID(), "notification");
    }

    private static void cancelled(Connection c) throws Exception {
        try (Statement s = c.createStatement()) {
            s.setQueryTimeout(1); // the driver sends a cancel request
            s.execute("SELECT pg_sleep(30)");
            throw new Exception("it was not cancelled");
        } catch (SQLException e) {
            check("57014".equals(e.getSQLState()), e.getMessage());
        }
    }
}
