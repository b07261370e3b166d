package headrace;

import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.dataview.MapView;
import org.apache.flink.table.functions.UserDefinedFunction;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.types.ColumnList;
import org.apache.flink.types.Row;

/** The first record of each id passes; an id is remembered while the partition's time lies no more than `within_ms` behind it. */
public final class Once extends Passing {
    private final int id;
    private final int time;
    private final int reached;
    private final long withinMs;

    public Once() {
        id = time = reached = 0;
        withinMs = 0;
    }

    private Once(CallContext call) {
        super(call);
        id = column(call, call.getArgumentValue(1, ColumnList.class).orElseThrow().getNames().get(0));
        time = column(call, TIME_MS);
        reached = column(call, REACHED);
        withinMs = number(call, 2);
    }

    @Override
    public UserDefinedFunction specialize(SpecializedContext context) {
        return new Once(context.getCallContext());
    }

    @Override
    List<StaticArgument> arguments() {
        return List.of(
                StaticArgument.scalar("id", DataTypes.DESCRIPTOR(), false),
                constant("within_ms"));
    }

    @Override
    LinkedHashMap<String, StateTypeStrategy> state() {
        LinkedHashMap<String, StateTypeStrategy> state = new LinkedHashMap<>();
        state.put("seen", kept(
                MapView.newMapViewDataType(DataTypes.STRING().notNull(), DataTypes.BIGINT().notNull())));
        return state;
    }

    /** seen: of each id, the largest event time of its records. A timer runs while it is not empty. */
    public void eval(Context context, MapView<String, Long> seen, Row record, ColumnList of, Long within)
            throws Exception {
        String name = record.getFieldAs(id);
        long timeMs = record.<Long>getFieldAs(time), reachedMs = record.<Long>getFieldAs(reached);
        Long lastMs = seen.get(name);
        if (lastMs == null && seen.isEmpty()) {
            context.timeContext(Long.class).registerOnTime(reachedMs + withinMs);
        }
        if (lastMs == null || lastMs < timeMs) {
            seen.put(name, timeMs);
        }
        if (lastMs == null || reachedMs - lastMs > withinMs) {
            pass(record);
        }
    }

    /** By now the time of every partition is later than the watermark. */
    public void onTimer(OnTimerContext context, MapView<String, Long> seen) throws Exception {
        long nowMs = context.timeContext(Long.class).currentWatermark();
        for (Iterator<Map.Entry<String, Long>> ids = seen.iterator(); ids.hasNext(); ) {
            if (ids.next().getValue() + withinMs <= nowMs) {
                ids.remove();
            }
        }
        if (seen.isEmpty()) {
            context.clearAllState();
        } else {
            context.timeContext(Long.class).registerOnTime(nowMs + Math.max(1, withinMs));
        }
    }
}
